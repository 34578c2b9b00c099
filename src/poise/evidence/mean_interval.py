"""The mean of a few values with its interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats

from poise.evidence.estimate import Estimate


def mean_interval(values: Float[np.ndarray, " values"]) -> Estimate:
    """Return the mean of values, one a seed or a split, with Student's 95 % interval; infinite for one value.

    Args:
        values: at least one.

    Example:
        >>> str(mean_interval(np.array([1.0, 2.0, 3.0])))
        '2 [-0.4841, 4.484]'
    """
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Estimate(mean, float("-inf"), float("inf"))
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return Estimate(mean, mean - half, mean + half)
