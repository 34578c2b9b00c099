"""The interval of a statistic over seeds that is no mean: a ratio of means, a fit, an extreme."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from poise.studies.kit.seed_interval import Interval

MOST_EXACT = 7
"""Largest number of seeds for which every resample is computed (1716 different ones)."""
DRAWS = 2000
"""Resamples that are drawn where there are more seeds."""


def bootstrap_over_seeds(
    statistic: Callable[..., float], *by_seed: ArrayLike, positive: bool = False
) -> tuple[float, Interval]:
    r"""Return a statistic of values by seed, and its 95 % interval over seeds.

    Seeds are drawn again with replacement, all values of a seed together. The standard deviation :math:`s^*` of the
    statistic over these resamples gives the interval

    .. math:: \hat\theta \pm t_{0.975, n-1} \sqrt{\frac{n}{n-1}}\, s^*

    which for a mean is exactly that of Student's t. (Percentiles of the resamples are no use here: with 3 seeds they
    cover a mean in 75 of 100 cases.) Up to 7 seeds all resamples are computed, above that 2000 are drawn, always the
    same. The interval is infinite for one seed, or if the statistic of a resample is not finite.

    Args:
        statistic: called with arrays like ``by_seed``, whose first axis are resampled seeds; returns a number.
        *by_seed: arrays whose first axis are the seeds, in the same order.
        positive: whether the statistic is positive by nature, such as a ratio; the interval is then that of its
            logarithm.

    Raises:
        ValueError: if there are no values, or the arrays differ in their number of seeds.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Hesterberg, What Teachers Should Know About the
        Bootstrap, The American Statistician, 2015 (why the factor and Student's t are needed for few seeds).
    """
    arrays = [np.asarray(values) for values in by_seed]
    lengths = {len(values) for values in arrays if values.ndim}
    if len(lengths) != 1 or 0 in lengths or any(not values.ndim for values in arrays):
        shapes = [values.shape for values in arrays]
        raise ValueError(f"by_seed must be arrays with the same number of seeds, at least one, got shapes {shapes}")
    (n,) = lengths
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*arrays))
        if n < 2:
            return value, _infinite(positive)
        weights, picks = zip(*_resamples(n), strict=True)
        resampled = np.array([float(statistic(*(values[pick] for values in arrays))) for pick in picks])
        value_on_scale, resampled = (np.log(value), np.log(resampled)) if positive else (value, resampled)
    if not (math.isfinite(value_on_scale) and np.isfinite(resampled).all()):
        return value, _infinite(positive)
    share = np.array(weights) / sum(weights)
    spread = math.sqrt(float(share @ (resampled - share @ resampled) ** 2))
    error = float(student_t.ppf(0.975, n - 1)) * math.sqrt(n / (n - 1)) * spread
    low, high = value_on_scale - error, value_on_scale + error
    return value, (math.exp(low), math.exp(high)) if positive else (low, high)


def _resamples(n: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield how often a resample comes out, and the seeds in it."""
    if n <= MOST_EXACT:
        for pick in combinations_with_replacement(range(n), n):
            ways = math.factorial(n)
            for count in Counter(pick).values():
                ways //= math.factorial(count)
            yield ways, np.array(pick)
    else:
        for pick in np.random.default_rng(0).integers(n, size=(DRAWS, n)):
            yield 1, pick


def _infinite(positive: bool) -> Interval:
    return (0.0, math.inf) if positive else (-math.inf, math.inf)
