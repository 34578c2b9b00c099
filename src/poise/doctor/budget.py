"""How much of a run's time the watch may spend, and how much it did."""

from __future__ import annotations

import math
import time

# Shares of the overhead: a tenth is kept back for what cannot be timed from inside (the dispatch of hooks, colder
# caches), and close looks get a part in any case.
_ALL, _LOOKS = 0.9, 0.3
_INSTALMENTS = 3.0  # a loan is paid back this many times more slowly than the whole allowance could


class Budget:
    """Keeps the cost of watching under a share of the run's own time.

    The watch reports every second that it spends (:attr:`spent`). What it may have spent after ``t`` seconds of the
    run is ``overhead * t`` plus a small loan, so that the first steps of a run, which decide so often, and the steps
    after a trigger are seen densely. The loan is paid back: what is left of it falls exponentially, to half within
    a dozen seconds at 3 %, and a run of a minute keeps to its share.

    Args:
        overhead: share of the run's own time that watching may cost, in (0, 1]; 0.03 is 3 %.
        loan: seconds that may be spent ahead of time.

    Raises:
        ValueError: if ``overhead`` is outside (0, 1].
    """

    def __init__(self, overhead: float = 0.03, loan: float = 0.15) -> None:
        if not 0.0 < overhead <= 1.0:
            raise ValueError(f"overhead must be a share in (0, 1], for example 0.03 for 3 %, got {overhead!r}")
        self.overhead = overhead
        self._loan, self._lent_at = loan, 0.0
        self.spent = 0.0
        self.looked = 0.0  # of it, on looking closely
        self.setup = 0.0
        self._rate = _ALL * overhead
        self._started = time.perf_counter()

    def start(self) -> None:
        """Start the clock, when the first step is seen: imports and data loading earn nothing.

        What was spent before, mostly on finding the model, is :attr:`setup`: it comes once, and is not to be saved
        from the steps that follow.
        """
        self.setup, self.spent = self.spent, 0.0
        self._started = time.perf_counter()

    def charge(self, since: float) -> None:
        """Add the time since ``since`` (of ``time.perf_counter``) to what was spent."""
        if since < self._started:  # the clock was started meanwhile
            self.setup += self._started - since
            since = self._started
        self.spent += time.perf_counter() - since

    @property
    def loan(self) -> float:
        """Seconds that are still lent."""
        return self._loan_at(self._own)

    def _loan_at(self, own: float) -> float:
        term = _INSTALMENTS * self._loan / self._rate
        return self._loan * math.exp((self._lent_at - own) / term) if term > 0 else 0.0

    def lend_at_least(self, seconds: float) -> None:
        """Enlarge the first loan to ``seconds``, once it is known what looking closely costs."""
        self._loan = max(self._loan, seconds)

    def lend(self, seconds: float) -> None:
        """Grant ``seconds`` for now, whatever has been spent so far: after a trigger."""
        own = self._own
        self._loan, self._lent_at = max(self._loan_at(own), -self._allowance(own)) + seconds, own

    @property
    def elapsed(self) -> float:
        """Seconds since the start, the watch's own time included."""
        return time.perf_counter() - self._started

    def allows(self, cost: float) -> bool:
        """Return whether ``cost`` more seconds may be spent on looking closely now."""
        own = self._own  # a few operations: this is asked on most steps
        return cost <= self._allowance(own) + self._loan_at(own)

    def _allowance(self, own: float) -> float:
        """Seconds that looking closely has earned and not spent; what every step costs must not starve it."""
        return max(self._rate * own - self.spent, _LOOKS * self.overhead * own - self.looked)

    def every(self, cost: float, step_seconds: float, share: float = 0.25) -> int:
        """Return at which cadence something of ``cost`` seconds takes no more than ``share`` of the budget."""
        allowance = share * self.overhead * max(step_seconds, 1e-6)
        return max(1, math.ceil(cost / allowance))

    @property
    def _own(self) -> float:
        return time.perf_counter() - self._started - self.spent

    @property
    def share(self) -> float:
        """What was spent, as a share of the run's own time."""
        return self.spent / self._own if self._own > 0 else 0.0
