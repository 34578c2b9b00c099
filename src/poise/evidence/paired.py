"""Comparison of two treatments that were run with the same seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from poise.evidence import _checks
from poise.evidence.verdict import Verdict, verdict_of
from poise.report import Report, Table

_RESAMPLES = 9999


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The effect of a treatment over pairs of runs.

    Args:
        n: number of pairs.
        mean_control: mean score without the treatment.
        mean_treated: mean score with it.
        difference: mean of treated minus control.
        interval: central 95 % posterior interval of the mean difference (Student t); infinite for a single pair.
        bootstrap_interval: 95 % bootstrap interval of the mean difference (BCa).
        p_better: posterior probability that the mean difference is an improvement; 0.5 for a single pair.
        p_worthwhile: the same for an improvement of more than ``min_effect``.
        verdict: by the rule of :func:`verdict_of`.
        lower_is_better: direction of the score.
        min_effect: smallest improvement that matters, in units of the score.
        diverged_control: how many control runs diverged.
        diverged_treated: how many treated runs diverged.
        note: what limits the comparison; empty if nothing does.
    """

    n: int
    mean_control: float
    mean_treated: float
    difference: float
    interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    p_better: float
    p_worthwhile: float
    verdict: Verdict
    lower_is_better: bool
    min_effect: float
    diverged_control: int
    diverged_treated: int
    note: str

    @property
    def improvement(self) -> float:
        """Mean difference counted so that positive is better."""
        return -self.difference if self.lower_is_better else self.difference

    def report(self) -> Report:
        """Return the comparison as a report."""
        rows: list[list[object]] = [
            ["pairs", self.n],
            ["mean without", self.mean_control],
            ["mean with", self.mean_treated],
            ["difference", self.difference],
            ["95 % posterior interval", _interval(self.interval)],
            ["95 % bootstrap interval", _interval(self.bootstrap_interval)],
            ["P(better)", self.p_better],
            ["P(better by more than what matters)", self.p_worthwhile],
            ["smallest difference that matters", self.min_effect],
            ["diverged without", self.diverged_control],
            ["diverged with", self.diverged_treated],
        ]
        better = "lower" if self.lower_is_better else "higher"
        summary = (
            f"With the treatment the score changes by {self.difference:.4g} {_interval(self.interval)} over {self.n} "
            f"pairs ({better} is better): {self.verdict}. {self.note}"
        ).strip()
        return Report(
            "Paired comparison", summary, blocks=[Table("Numbers", ["quantity", "value"], rows)], verdict=self.verdict
        )


def compare_paired(
    control: Any,
    treated: Any,
    lower_is_better: bool = True,
    seed: int = 0,
    min_effect: float = 0.0,
    diverged_as: float | None = None,
) -> PairedComparison:
    """Compare scores of the same seeds without and with a treatment.

    The posterior is that of a mean of normal differences under the prior 1/sigma, a Student t with n - 1 degrees of
    freedom: with 3 pairs its interval is 2.2 times as wide as a normal one, so few seeds prove only large effects.
    *Proved* also needs the bootstrap interval, which assumes no normality, to exclude no effect. A single pair proves
    nothing; its direction is reported as *helps, not proved* or *hurts*. If all differences are the same number there
    is no spread to estimate and the Student t would be certain; the number of wins is used instead (n wins of n under a
    uniform prior: P = 1 - 2^-(n+1)).

    Args:
        control: one score per seed without the treatment.
        treated: one score per seed with it, in the same order.
        lower_is_better: whether a lower score is better, as for a loss.
        seed: seed of the bootstrap.
        min_effect: smallest improvement that matters, relative to the absolute mean of ``control``.
        diverged_as: score that a diverged run (NaN, infinite or beyond 1e100) counts as, for example the loss of
            guessing; by default such a score is an error.

    Raises:
        ValueError: if lengths differ or are 0, a score diverged and ``diverged_as`` is not given, or
            ``min_effect`` is negative.

    References:
        Efron, Better bootstrap confidence intervals, Journal of the American Statistical Association, 1987 (BCa).

    Examples:
        >>> compare_paired([2.51, 2.48, 2.60], [2.31, 2.30, 2.38]).verdict
        'proved'
    """
    a, lost_a = _checks.scores("control", control, diverged_as)
    b, lost_b = _checks.scores("treated", treated, diverged_as)
    if len(a) != len(b):
        raise ValueError(f"control and treated must hold one score per seed each, got {len(a)} and {len(b)} scores")
    if not (min_effect >= 0 and math.isfinite(min_effect)):
        raise ValueError(f"min_effect must be finite and not negative, got {min_effect}")
    least = min_effect * abs(float(a.mean()))
    gain = (a - b) if lower_is_better else (b - a)
    posterior = _posterior(gain, least)
    resampled = _bootstrap(gain, seed)
    flip = -1.0 if lower_is_better else 1.0
    return PairedComparison(
        n=len(a),
        mean_control=float(a.mean()),
        mean_treated=float(b.mean()),
        difference=float((b - a).mean()),
        interval=_oriented(posterior.interval, flip),
        bootstrap_interval=_oriented(resampled, flip),
        p_better=posterior.p_better,
        p_worthwhile=posterior.p_helps,
        verdict=_verdict(gain, least, posterior, resampled),
        lower_is_better=lower_is_better,
        min_effect=least,
        diverged_control=int(lost_a.sum()),
        diverged_treated=int(lost_b.sum()),
        note=posterior.note,
    )


@dataclass(frozen=True, slots=True)
class _Posterior:
    interval: tuple[float, float]
    p_better: float
    p_helps: float
    p_hurts: float
    note: str


def _posterior(gain: NDArray[np.float64], least: float) -> _Posterior:
    n, mean = len(gain), float(gain.mean())
    if n == 1:
        return _Posterior((-math.inf, math.inf), 0.5, 0.5, 0.5, "One pair does not show the spread between seeds.")
    if _constant(gain):
        return _from_signs(mean, n, least)
    t = stats.t(n - 1, loc=mean, scale=float(gain.std(ddof=1)) / math.sqrt(n))
    low, high = t.ppf([0.025, 0.975])
    return _Posterior((float(low), float(high)), float(t.sf(0.0)), float(t.sf(least)), float(t.cdf(-least)), "")


def _from_signs(gain: float, n: int, least: float) -> _Posterior:
    sure = 1.0 - 0.5 ** (n + 1)
    note = "All differences are equal, so the probability follows from the number of wins alone."

    def beyond(gain: float, limit: float) -> float:
        return sure if gain > limit else 1.0 - sure if gain < -limit or limit > 0 else 0.5

    if gain == 0.0:
        return _Posterior((0.0, 0.0), 0.5, 0.0, 0.0, note)
    return _Posterior((gain, gain), beyond(gain, 0.0), beyond(gain, least), beyond(-gain, least), note)


def _bootstrap(gain: NDArray[np.float64], seed: int) -> tuple[float, float]:
    mean = float(gain.mean())
    if len(gain) == 1:
        return -math.inf, math.inf
    if _constant(gain):
        return mean, mean
    interval = stats.bootstrap(
        (gain,), np.mean, n_resamples=_RESAMPLES, method="BCa", random_state=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _verdict(gain: NDArray[np.float64], least: float, posterior: _Posterior, resampled: tuple[float, float]) -> Verdict:
    if len(gain) > 1:
        return verdict_of(posterior.p_helps, posterior.p_hurts, second_interval_agrees=resampled[0] > least)
    if abs(gain[0]) <= least:
        return "no effect"
    return "helps, not proved" if gain[0] > 0 else "hurts"


def _constant(gain: NDArray[np.float64]) -> bool:
    # Differences of equal scores may still differ in their last bits.
    return float(np.ptp(gain)) <= 1e-12 * float(np.abs(gain).max())


def _oriented(interval: tuple[float, float], flip: float) -> tuple[float, float]:
    """Ends of the interval of treated minus control, from those of the gain."""
    low, high = sorted((flip * interval[0], flip * interval[1]))
    return low + 0.0, high + 0.0  # no negative zero


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"
