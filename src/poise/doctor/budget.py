"""How much of a run's time the watch may spend, and how much it did."""

from __future__ import annotations

import math
import time

from poise.tools.clock import Seconds, cpu_seconds, now

# Fractions of the overhead: a tenth is kept back for what cannot be timed from inside (the dispatch of hooks, colder
# caches), and sampled steps get a part in any case.
_ALL, _SAMPLED = 0.9, 0.3
_REPAYMENT = 3.0  # a credit is repaid this many times more slowly than the whole allowance could
_FIXED = 0.5  # fraction of the allowance that goes to the fixed cost until that is paid


class Budget:
    """Keeps the cost of watching under a fraction of the run's own time.

    The watch reports every second that it spends (:attr:`spent`). What it may have spent after ``t`` seconds of the run
    is ``overhead * t`` plus a small credit, so that the first steps of a run, which are often decisive, and the steps
    after a trigger are sampled densely. The credit is repaid: what is left of it falls exponentially, and a run of a
    minute keeps to its fraction. What a run costs once, however long it is (:attr:`fixed` and :attr:`setup`), is paid
    from the same allowance: up to half of it goes there until that is done.

    Seconds are those in which the process ran: the smaller one of wall time and CPU time. On a busy machine the run and
    its watch both wait for other processes, and this waiting is not charged to the watch.

    Args:
        overhead: fraction of the run's own time that watching may cost, in (0, 1]; 0.03 is 3 %.
        credit: seconds that may be spent before they are earned.
        fixed: seconds that the run costs once, apart from finding its model: start and report.

    Raises:
        ValueError: if ``overhead`` is outside (0, 1].
    """

    def __init__(self, overhead: float = 0.03, credit: float = 0.1, fixed: float = 0.0) -> None:
        if not 0.0 < overhead <= 1.0:
            raise ValueError(f"overhead must be a fraction in (0, 1], for example 0.03 for 3 %, got {overhead!r}")
        self.overhead = overhead
        self.fixed = fixed
        self._credit, self._granted_at = credit, 0.0
        self.spent = 0.0
        self.spent_sampling = 0.0  # of it, on sampled steps
        self.setup = 0.0
        self._rate = _ALL * overhead
        self._started = now()
        self._running = 1.0  # fraction of the time so far in which the process ran

    def start(self) -> None:
        """Start the clock, when the first step is seen: imports and data loading earn nothing.

        What was spent before, mostly on finding the model, is :attr:`setup`: it is spent once.
        """
        self.setup, self.spent = self.spent, 0.0
        self._started = now()

    def charge(self, since: float, cpu_since: float | None = None) -> None:
        """Add a stretch of time that ends now to what was spent.

        Args:
            since: its start, of ``time.perf_counter``.
            cpu_since: its start, of :func:`poise.tools.clock.cpu_seconds`. Without it (reading this clock would take a
                considerable part of a short stretch), the fraction that the process has run so far is charged.
        """
        if since < self._started.wall:  # the clock was started meanwhile
            self.setup += (self._started - Seconds(since, -math.inf if cpu_since is None else cpu_since)).busy
            since, cpu_since = self._started.wall, None if cpu_since is None else self._started.cpu
        seconds = time.perf_counter() - since
        self.spent += (
            seconds * self._running if cpu_since is None else max(0.0, min(seconds, cpu_seconds() - cpu_since))
        )

    @property
    def credit(self) -> float:
        """Seconds of credit that are not repaid yet."""
        return self._credit_at(self._own)

    def _credit_at(self, own: float) -> float:
        term = _REPAYMENT * self._credit / self._rate
        return self._credit * math.exp((self._granted_at - own) / term) if term > 0 else 0.0

    def grant_at_least(self, seconds: float) -> None:
        """Enlarge the first credit to ``seconds``, once the cost of a sampled step is known."""
        self._credit = max(self._credit, seconds)

    def grant(self, seconds: float) -> None:
        """Grant a credit of ``seconds`` after a trigger, whatever has been spent so far."""
        own = self._own
        self._credit, self._granted_at = max(self._credit_at(own), -self._allowance(own)) + seconds, own

    @property
    def elapsed(self) -> float:
        """Seconds since the start, the watch's own time included."""
        wall, cpu = time.perf_counter() - self._started.wall, cpu_seconds() - self._started.cpu
        if wall > 0:
            self._running = max(0.0, min(1.0, cpu / wall))
        return wall * self._running

    def allows(self, cost: float) -> bool:
        """Return whether ``cost`` more seconds may be spent on sampling a step now."""
        own = self._own  # a few operations: this runs on most steps
        return cost <= self._allowance(own) + self._credit_at(own)

    @property
    def granted(self) -> float:
        """Seconds that the watch was allowed to spend so far, the remaining credit and the fixed cost included."""
        own = self._own
        return self._rate * own + self._credit_at(own)

    def _earned(self, own: float) -> float:
        earned = self._rate * own
        return earned - min(self.fixed + self.setup, _FIXED * earned)

    def _allowance(self, own: float) -> float:
        """Seconds earned and not spent; sampled steps keep their part whatever every step costs."""
        return max(self._earned(own) - self.spent, _SAMPLED * self.overhead * own - self.spent_sampling)

    def interval(self, cost: float, step_seconds: float, fraction: float = 0.25) -> int:
        """Return every how many steps ``cost`` seconds may be spent within ``fraction`` of the budget."""
        allowance = fraction * self.overhead * max(step_seconds, 1e-6)
        return max(1, math.ceil(cost / allowance))

    @property
    def _own(self) -> float:
        return self.elapsed - self.spent

    @property
    def fraction(self) -> float:
        """What was spent on steps, as a fraction of the run's own time."""
        own = self._own
        return self.spent / own if own > 0 else 0.0
