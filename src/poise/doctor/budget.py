"""How much of a run's time the watch may spend, and how much it did."""

from __future__ import annotations

import math
import time


class Budget:
    """Keeps the cost of watching under a share of the run's own time.

    The watch reports every second that it spends (:attr:`spent`). What it may have spent after ``t`` seconds of the
    run is ``overhead * t`` plus a small loan, so that the first steps of a run, which decide so often, and the steps
    after a trigger are seen densely.

    Args:
        overhead: share of the run's own time that watching may cost, in (0, 1]; 0.03 is 3 %.
        loan: seconds that may be spent ahead of time.

    Raises:
        ValueError: if ``overhead`` is outside (0, 1].
    """

    def __init__(self, overhead: float = 0.03, loan: float = 0.25) -> None:
        if not 0.0 < overhead <= 1.0:
            raise ValueError(f"overhead must be a share in (0, 1], for example 0.03 for 3 %, got {overhead!r}")
        self.overhead = overhead
        self.loan = loan
        self.spent = 0.0
        self.setup = 0.0
        # A tenth is kept back for what cannot be timed from inside: the dispatch of hooks, colder caches.
        self._rate = 0.9 * overhead
        self._started = time.perf_counter()

    def start(self) -> None:
        """Start the clock, when the first step is seen: imports and data loading earn nothing.

        What was spent before, mostly on finding the model, is :attr:`setup`: it comes once, and is not to be saved
        from the steps that follow.
        """
        self.setup = self.spent
        self._started = time.perf_counter()

    def charge(self, since: float) -> None:
        """Add the time since ``since`` (of ``time.perf_counter``) to what was spent."""
        now = time.perf_counter()
        if since < self._started:  # the clock was started meanwhile
            self.setup += self._started - since
            since = self._started
        self.spent += now - since

    def lend(self, seconds: float) -> None:
        """Enlarge the loan once, after a trigger."""
        self.loan += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start, the watch's own time included."""
        return time.perf_counter() - self._started

    def allows(self, cost: float) -> bool:
        """Return whether ``cost`` more seconds may be spent now."""
        return self.spent + cost <= self._rate * (self.elapsed - self.spent) + self.loan

    def every(self, cost: float, step_seconds: float, share: float = 0.5) -> int:
        """Return at which cadence something of ``cost`` seconds takes no more than ``share`` of the budget."""
        allowance = share * self._rate * max(step_seconds, 1e-6)
        return max(1, math.ceil(cost / allowance))

    @property
    def share(self) -> float:
        """What was spent, as a share of the run's own time."""
        own = self.elapsed - self.spent
        return self.spent / own if own > 0 else 0.0
