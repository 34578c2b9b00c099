"""How much of a run's time the watch may spend, and how much it did."""

from __future__ import annotations

import math
import time

from poise.tools.clock import Seconds, cpu_seconds, now

# Fractions of the overhead: a tenth is kept back for what cannot be timed from inside (the dispatch of hooks, colder
# caches), and sampled steps get a part in any case.
_ALL, _LOOKS = 0.9, 0.3
_INSTALMENTS = 3.0  # a loan is paid back this many times more slowly than the whole allowance could
_FIXED = 0.5  # fraction of the allowance that goes to the fixed cost until that is paid


class Budget:
    """Keeps the cost of watching under a fraction of the run's own time.

    The watch reports every second that it spends (:attr:`spent`). What it may have spent after ``t`` seconds of the
    run is ``overhead * t`` plus a small credit, so that the first steps of a run, which decide so often, and the steps
    after a trigger are seen densely. The credit is paid back: what is left of it falls exponentially, and a run of a
    minute keeps to its fraction. What a run costs once, however long it is (:attr:`fixed` and :attr:`setup`), is paid
    from the same allowance: up to half of it goes there until that is done.

    Seconds are those in which the process ran, the smaller one of the time that went by and of CPU time: on a busy
    machine the run and its watch wait for other processes alike, and neither is charged to the watch.

    Args:
        overhead: fraction of the run's own time that watching may cost, in (0, 1]; 0.03 is 3 %.
        loan: seconds that may be spent ahead of time.
        fixed: seconds that the run costs once, apart from finding its model: start and report.

    Raises:
        ValueError: if ``overhead`` is outside (0, 1].
    """

    def __init__(self, overhead: float = 0.03, loan: float = 0.1, fixed: float = 0.0) -> None:
        if not 0.0 < overhead <= 1.0:
            raise ValueError(f"overhead must be a share in (0, 1], for example 0.03 for 3 %, got {overhead!r}")
        self.overhead = overhead
        self.fixed = fixed
        self._loan, self._lent_at = loan, 0.0
        self.spent = 0.0
        self.looked = 0.0  # of it, on sampled steps
        self.setup = 0.0
        self._rate = _ALL * overhead
        self._started = now()
        self._running = 1.0  # fraction of the time so far in which the process ran

    def start(self) -> None:
        """Start the clock, when the first step is seen: imports and data loading earn nothing.

        What was spent before, mostly on finding the model, is :attr:`setup`: it comes once.
        """
        self.setup, self.spent = self.spent, 0.0
        self._started = now()

    def charge(self, since: float, cpu_since: float | None = None) -> None:
        """Add a stretch of time that ends now to what was spent.

        Args:
            since: its start, of ``time.perf_counter``.
            cpu_since: its start, of :func:`poise.tools.clock.cpu_seconds`. A stretch so short that the second clock
                would take a part of it goes without: of it counts the fraction that the process has run so far.
        """
        if since < self._started.wall:  # the clock was started meanwhile
            self.setup += (self._started - Seconds(since, -math.inf if cpu_since is None else cpu_since)).busy
            since, cpu_since = self._started.wall, None if cpu_since is None else self._started.cpu
        seconds = time.perf_counter() - since
        self.spent += (
            seconds * self._running if cpu_since is None else max(0.0, min(seconds, cpu_seconds() - cpu_since))
        )

    @property
    def loan(self) -> float:
        """Seconds that are still lent."""
        return self._loan_at(self._own)

    def _loan_at(self, own: float) -> float:
        term = _INSTALMENTS * self._loan / self._rate
        return self._loan * math.exp((self._lent_at - own) / term) if term > 0 else 0.0

    def lend_at_least(self, seconds: float) -> None:
        """Enlarge the first loan to ``seconds``, once it is known what a sampled step costs."""
        self._loan = max(self._loan, seconds)

    def lend(self, seconds: float) -> None:
        """Grant ``seconds`` for now, whatever has been spent so far: after a trigger."""
        own = self._own
        self._loan, self._lent_at = max(self._loan_at(own), -self._allowance(own)) + seconds, own

    @property
    def elapsed(self) -> float:
        """Seconds since the start, the watch's own time included."""
        wall, cpu = time.perf_counter() - self._started.wall, cpu_seconds() - self._started.cpu
        if wall > 0:
            self._running = max(0.0, min(1.0, cpu / wall))
        return wall * self._running

    def allows(self, cost: float) -> bool:
        """Return whether ``cost`` more seconds may be spent on sampling a step now."""
        own = self._own  # a few operations: this is asked on most steps
        return cost <= self._allowance(own) + self._loan_at(own)

    @property
    def granted(self) -> float:
        """Seconds that the steps so far might have taken, what is still lent included."""
        own = self._own
        return self._earned(own) + self._loan_at(own)

    def _earned(self, own: float) -> float:
        earned = self._rate * own
        return earned - min(self.fixed + self.setup, _FIXED * earned)

    def _allowance(self, own: float) -> float:
        """Seconds that sampled steps have earned and not spent; what every step costs must not starve them."""
        return max(self._earned(own) - self.spent, _LOOKS * self.overhead * own - self.looked)

    def every(self, cost: float, step_seconds: float, share: float = 0.25) -> int:
        """Return at which cadence something of ``cost`` seconds takes no more than ``share`` of the budget."""
        allowance = share * self.overhead * max(step_seconds, 1e-6)
        return max(1, math.ceil(cost / allowance))

    @property
    def _own(self) -> float:
        return self.elapsed - self.spent

    @property
    def share(self) -> float:
        """What was spent on steps, as a fraction of the run's own time."""
        own = self._own
        return self.spent / own if own > 0 else 0.0
