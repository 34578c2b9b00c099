"""Which steps are sampled."""

from __future__ import annotations

import statistics
from collections.abc import Collection

from poise.doctor.budget import Budget

_BURST = 32  # steps sampled densely after a trigger
_MOST_CREDITS = 3  # how many triggers are granted a credit
# This many samples are guaranteed, at first and after a trigger, and a credit pays for them. The bounds in seconds are
# far above what they take on a busy machine.
_FIRST_SAMPLES, _FIRST_CREDIT = 20, 0.5
_TRIGGER_SAMPLES, _TRIGGER_CREDIT = 8, (0.06, 0.25)
_GUARANTEED_SECONDS = 2.0
_MEASURED = 3  # sampled steps whose median cost is taken: the first one does more, and one may be interrupted
_WIDEST = 50  # steps between sampled ones, as long as the budget allows it


class Sampler:
    """Chooses the sampled steps of a run within the budget: dense at first and after a trigger, then ever wider.

    With several optimizers a sample lasts until each of them has stepped once. Which steps are due for a sample follows
    from their count alone, so that the same script is sampled at the same steps on a slow and on a fast machine; the
    budget only decides how many of them, after the guaranteed ones, are left out.

    Args:
        budget: what may be spent.

    Attributes:
        taken: samples that have ended.
        left_out: samples that were due and that the budget did not allow.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.sampling = True
        self._to_see: set[int] = set()
        self._last = 0
        self._burst = 0
        self._credits = 0
        self._spent_before = 0.0
        self._seconds = 0.002  # cost of a sampled step, smoothed
        self._first: list[float] = []  # costs of the first sampled steps
        self._guaranteed = _FIRST_SAMPLES
        self.taken = self.left_out = 0

    @property
    def alarmed(self) -> bool:
        """Whether there was a trigger within the last steps."""
        return self._burst > 0

    def leave_out(self, seconds: float) -> None:
        """Do not count ``seconds`` as cost of the current sample: they have a part of the budget of their own."""
        self._spent_before += seconds

    def expect(self, optimizer: int) -> None:
        """Continue the current sample until this optimizer has stepped."""
        self._to_see.add(optimizer)

    def trigger(self) -> bool:
        """Sample the next steps, and return whether the running one may be sampled too."""
        if not self._burst and self._credits < _MOST_CREDITS:
            self._credits += 1
            least, most = _TRIGGER_CREDIT
            self.budget.grant(min(most, max(least, _TRIGGER_SAMPLES * self._seconds)))
            self._guaranteed += _TRIGGER_SAMPLES
        if not self._is_allowed():
            return False
        self._burst = _BURST
        return True

    def next(self, optimizer: int, step: int, optimizers: Collection[int]) -> bool:
        """Return whether the step after ``step``, which ``optimizer`` has just taken, is sampled."""
        self._burst = max(0, self._burst - 1)
        if self.sampling:
            self._to_see.discard(optimizer)
            if not self._to_see or step - self._last > 2 * len(optimizers):
                self._stop()
        # The first credit has to last for hundreds of steps: hence the growing distance.
        wait = 1 if self._burst else min(_WIDEST, max(1, step // 4))
        if not self.sampling and step - self._last >= wait:
            if self._is_allowed():
                self._start(step, optimizers)
            else:
                self._last = step
                self.left_out += 1
        return self.sampling

    def _is_allowed(self) -> bool:
        # Most causes need a few samples: a short run, or a busy machine, must not be left with two.
        is_guaranteed = self._guaranteed > 0 and self.budget.spent_sampling < _GUARANTEED_SECONDS
        return is_guaranteed or self.budget.allows(self._seconds)

    def _start(self, step: int, optimizers: Collection[int]) -> None:
        self.sampling = True
        self._last = step
        self._to_see = set(optimizers)
        self._spent_before = self.budget.spent

    def _stop(self) -> None:
        self.sampling = False
        self.taken += 1
        self._guaranteed = max(0, self._guaranteed - 1)
        seconds = self.budget.spent - self._spent_before
        self.budget.spent_sampling += seconds
        self._seconds = 0.7 * self._seconds + 0.3 * seconds
        if len(self._first) < _MEASURED:
            self._first.append(seconds)
            if len(self._first) == _MEASURED:
                self.budget.grant_at_least(min(_FIRST_CREDIT, _FIRST_SAMPLES * statistics.median(self._first)))
