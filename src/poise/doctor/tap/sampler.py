"""Which steps are looked at closely."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from poise.doctor.budget import Budget

_BURST = 32  # steps seen densely after a trigger
_LOANS = 3  # how often a trigger may borrow time
# What is lent, to the first steps and after a trigger, is so many looks' cost: where other work keeps the machine busy
# a look takes longer, and so do the steps that it is a share of. Seconds are the least and the most.
_FIRST_LOOKS, _FIRST_LOAN = 20, 0.5
_TRIGGER_LOOKS, _TRIGGER_LOAN = 8, (0.06, 0.25)
_MEASURED = 3  # looks, the median of which tells what a look costs: the first does more, one may be interrupted
_WIDEST = 50  # steps between close looks, as long as the budget lets it


class Sampler:
    """Spreads close looks over a run: dense at first and after a trigger, ever wider otherwise, within the budget.

    With several optimizers a look lasts until each of them has stepped once.

    Args:
        budget: what may be spent.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.sampling = True
        self._to_see: set[int] = set()
        self._last = 0
        self._burst = 0
        self._loans = 0
        self._spent_before = 0.0
        self._seconds = 0.002  # what a look costs, smoothed
        self._first: list[float] = []  # what the first looks cost

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
            least, most = _TRIGGER_LOAN
            self.budget.lend(min(most, max(least, _TRIGGER_LOOKS * self._seconds)))
        if not self.budget.allows(self._seconds):
            return False
        self._burst = _BURST
        return True

    def next(self, optimizer: int, step: int, optimizers: Collection[int]) -> bool:
        """Return whether the step after ``step``, which ``optimizer`` has just taken, is looked at closely."""
        self._burst = max(0, self._burst - 1)
        if self.sampling:
            self._to_see.discard(optimizer)
            if not self._to_see or step - self._last > 2 * len(optimizers):
                self._stop()
        # The loan has to last for the first hundreds of steps: hence the widening.
        wait = 1 if self._burst else min(_WIDEST, max(1, step // 4))
        if not self.sampling and step - self._last >= wait and self.budget.allows(self._seconds):
            self._start(step, optimizers)
        return self.sampling

    def _start(self, step: int, optimizers: Collection[int]) -> None:
        self.sampling = True
        self._last = step
        self._to_see = set(optimizers)
        self._spent_before = self.budget.spent

    def _stop(self) -> None:
        self.sampling = False
        seconds = self.budget.spent - self._spent_before
        self.budget.looked += seconds
        self._seconds = 0.7 * self._seconds + 0.3 * seconds
        if len(self._first) < _MEASURED:
            self._first.append(seconds)
            if len(self._first) == _MEASURED:
                self.budget.lend_at_least(min(_FIRST_LOAN, _FIRST_LOOKS * statistics.median(self._first)))
