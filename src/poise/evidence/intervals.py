"""Exact interval of a proportion."""

from __future__ import annotations

from scipy import stats

from poise.evidence import _checks


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact (conservative) interval of a probability.

    Args:
        successes: successes.
        trials: trials; with 0 trials the interval is [0, 1].
        level: confidence, in (0, 1).

    Raises:
        ValueError: if counts are not whole, negative, or successes exceed trials, or ``level`` is outside (0, 1).

    References:
        Clopper and Pearson (1934). The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    x, n = _checks.successes_and_trials([successes], [trials])
    tail = (1.0 - _checks.fraction("level", level)) / 2
    low = 0.0 if x[0] == 0 else float(stats.beta.ppf(tail, x[0], n[0] - x[0] + 1))
    high = 1.0 if x[0] == n[0] else float(stats.beta.isf(tail, x[0] + 1, n[0] - x[0]))
    return low, high
