"""Comparison of how often an unwanted event (a divergence) happens without and with a treatment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from poise.evidence import _checks
from poise.evidence.intervals import clopper_pearson
from poise.evidence.verdict import Verdict, verdict_of
from poise.report import Report, Table

_NODES, _WEIGHTS = special.roots_legendre(200)


@dataclass(frozen=True, slots=True)
class RateComparison:
    """The effect of a treatment on event counts.

    Args:
        events_a: events without the treatment.
        n_a: runs without it.
        events_b: events with it.
        n_b: runs with it.
        difference: fraction of events with the treatment minus without.
        interval: central 95 % posterior interval of the difference of the rates.
        p_better: posterior probability that the rate is lower with the treatment.
        p_worthwhile: the same for lower by more than ``min_effect``.
        p_value: Fisher's exact two-sided p-value, for comparison; the verdict does not use it.
        min_effect: smallest drop of the rate that matters.
        verdict: by the rule of :func:`verdict_of`.
    """

    events_a: int
    n_a: int
    events_b: int
    n_b: int
    difference: float
    interval: tuple[float, float]
    p_better: float
    p_worthwhile: float
    p_value: float
    min_effect: float
    verdict: Verdict

    def report(self) -> Report:
        """Return the comparison as a report."""
        rows = [
            [name, events, n, events / n, *clopper_pearson(events, n)]
            for name, events, n in (("without", self.events_a, self.n_a), ("with", self.events_b, self.n_b))
        ]
        summary = (
            f"{self.events_a} of {self.n_a} runs without the treatment and {self.events_b} of {self.n_b} with it had "
            f"the event; the rate changes by {self.difference:.3g} [{self.interval[0]:.3g}, {self.interval[1]:.3g}], "
            f"P(lower with the treatment) = {self.p_better:.4g}, Fisher's exact p = {self.p_value:.3g}: {self.verdict}."
        )
        table = Table(
            "Rates", ["treatment", "events", "runs", "rate", "low", "high"], rows, "Clopper-Pearson 95 % intervals."
        )
        return Report("Comparison of event rates", summary, blocks=[table], verdict=self.verdict)


def compare_event_rates(events_a: int, n_a: int, events_b: int, n_b: int, min_effect: float = 0.0) -> RateComparison:
    """Compare the rate of an unwanted event without (a) and with (b) a treatment.

    Both rates have a uniform prior, so their posteriors are Beta(events + 1, n - events + 1); the posterior of their
    difference is integrated numerically, without sampling. No events in few runs is little evidence: 3 of 3 against
    0 of 3 is P = 0.986, 2 of 2 against 0 of 2 is P = 0.95.

    Args:
        events_a: events without the treatment.
        n_a: runs without it, at least 1.
        events_b: events with it.
        n_b: runs with it, at least 1.
        min_effect: smallest drop of the rate that matters, in [0, 1).

    Raises:
        ValueError: if a count is not whole, negative, or exceeds its number of runs, or there are no runs.

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, chapter 2 (the posterior of a rate).
        Fisher, Statistical Methods for Research Workers, 5th edition, 1934 (the exact test).
    """
    events_a, n_a = _checks.count("events_a", events_a), _checks.count("n_a", n_a)
    events_b, n_b = _checks.count("events_b", events_b), _checks.count("n_b", n_b)
    for name, events, n in (("a", events_a, n_a), ("b", events_b, n_b)):
        if n < 1 or events > n:
            raise ValueError(
                f"n_{name} must be at least 1 and at least events_{name}, got {n} runs and {events} events"
            )
    if not 0.0 <= min_effect < 1.0:
        raise ValueError(f"min_effect must lie in [0, 1), got {min_effect}")
    a, b = stats.beta(events_a + 1, n_a - events_a + 1), stats.beta(events_b + 1, n_b - events_b + 1)
    p_helps, p_hurts = _p_below(a, b, -min_effect), 1.0 - _p_below(a, b, min_effect)
    table = np.array([[events_a, n_a - events_a], [events_b, n_b - events_b]])
    return RateComparison(
        events_a=events_a,
        n_a=n_a,
        events_b=events_b,
        n_b=n_b,
        difference=events_b / n_b - events_a / n_a,
        interval=(_quantile(a, b, 0.025), _quantile(a, b, 0.975)),
        p_better=_p_below(a, b, 0.0),
        p_worthwhile=p_helps,
        p_value=float(stats.fisher_exact(table)[1]),
        min_effect=min_effect,
        verdict=verdict_of(p_helps, p_hurts),
    )


def _p_below(a: Any, b: Any, limit: float) -> float:
    """P(rate b - rate a < limit)."""
    # Over the part of a's range that holds its mass, and where b's distribution function has no kink.
    low, high = a.ppf([1e-12, 1.0 - 1e-12])
    kinks = [x for x in (-limit, 1.0 - limit) if low < x < high]
    total = 0.0
    for left, right in zip([low, *kinks], [*kinks, high], strict=True):
        x = left + (right - left) * (_NODES + 1) / 2
        total += float((_WEIGHTS * a.pdf(x) * b.cdf(x + limit)).sum()) * (right - left) / 2
    return min(1.0, max(0.0, float(total)))


def _quantile(a: Any, b: Any, level: float) -> float:
    return float(optimize.brentq(lambda limit: _p_below(a, b, limit) - level, -1.0, 1.0, xtol=1e-10))
