"""Which steps are looked at closely."""

from __future__ import annotations

from collections.abc import Collection

from poise.doctor.budget import Budget

_BURST = 32  # steps seen densely after a trigger
_LOANS, _LOAN = 3, 0.06  # how often a trigger may borrow time, and how many seconds
_WIDEST = 50  # steps between close looks, as long as the budget lets it


class Sampler:
    """Spreads close looks over a run: dense at first and after a trigger, ever wider otherwise, within the budget.

    With several optimizers a look lasts until each of them has stepped once.

    Args:
        budget: what may be spent.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.looking = True
        self._to_see: set[int] = set()
        self._last = 0
        self._burst = 0
        self._loans = 0
        self._spent_before = 0.0
        self._seconds = 0.002  # what a look costs, smoothed

    @property
    def alarmed(self) -> bool:
        """Whether something stood out within the last steps."""
        return self._burst > 0

    def leave_out(self, seconds: float) -> None:
        """Do not count ``seconds`` as part of what the current look costs: what took them has a share of its own."""
        self._spent_before += seconds

    def expect(self, optimizer: int) -> None:
        """Keep the current look going until this optimizer has stepped."""
        self._to_see.add(optimizer)

    def trigger(self) -> bool:
        """Something stands out: look at the next steps, and return whether the running one may be looked at too."""
        if not self._burst and self._loans < _LOANS:
            self._loans += 1
            self.budget.lend(_LOAN)
        if not self.budget.allows(self._seconds):
            return False
        self._burst = _BURST
        return True

    def next(self, optimizer: int, step: int, optimizers: Collection[int]) -> bool:
        """Return whether the step after ``step``, which ``optimizer`` has just taken, is looked at closely."""
        self._burst = max(0, self._burst - 1)
        if self.looking:
            self._to_see.discard(optimizer)
            if not self._to_see or step - self._last > 2 * len(optimizers):
                self._stop()
        # The loan has to last for the first hundreds of steps: hence the widening.
        wait = 1 if self._burst else min(_WIDEST, max(1, step // 4))
        if not self.looking and step - self._last >= wait and self.budget.allows(self._seconds):
            self._start(step, optimizers)
        return self.looking

    def _start(self, step: int, optimizers: Collection[int]) -> None:
        self.looking = True
        self._last = step
        self._to_see = set(optimizers)
        self._spent_before = self.budget.spent

    def _stop(self) -> None:
        self.looking = False
        seconds = self.budget.spent - self._spent_before
        self.budget.looked += seconds
        self._seconds = 0.7 * self._seconds + 0.3 * seconds
