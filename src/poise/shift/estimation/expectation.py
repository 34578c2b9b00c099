"""The expected metric of a chunk, and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from poise.shift.estimation.calibration import Calibration
from poise.shift.estimation.metrics import AnyMetric, SampledMetric
from poise.shift.estimation.scored_rows import ScoredRows

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Expectation:
    """A metric's expectation, its 95 % interval, and the error of drawing.

    Args:
        value: the expectation.
        low: lower end of the interval of the realised metric.
        high: upper end.
        sampling_error: standard error of ``value`` that comes from a finite number of drawn labels.
    """

    value: float
    low: float
    high: float
    sampling_error: float = 0.0


def probabilities(rows: ScoredRows, calibrations: Sequence[Calibration]) -> Float[np.ndarray, "rows scores"]:
    """Return calibrated probabilities: each column by its own calibration; of several classes scaled to sum 1."""
    c = np.stack([each.probability(rows.score[:, k]) for k, each in enumerate(calibrations)], 1)
    if rows.is_binary:
        return c
    total = c.sum(1, keepdims=True)
    return np.divide(c, total, out=np.full_like(c, 1 / c.shape[1]), where=total > 0)


def expect(
    metric: AnyMetric,
    rows: ScoredRows,
    c: Float[np.ndarray, "rows scores"],
    calibrations: Sequence[Calibration],
    seed: int,
) -> Expectation:
    """Return the expected metric where each row's class has given probabilities.

    The interval is of the metric that the labels will show: it holds the chance of the labels, and that of the
    reference to which the calibration was fitted. The second is left out for drawn labels.

    Args:
        metric: in closed form, or any function.
        rows: the chunk.
        c: probability of each class.
        calibrations: from which the probabilities come.
        seed: of drawn labels.
    """
    if isinstance(metric, SampledMetric):
        return _drawn(metric, rows, c, seed)
    value, slope = metric.expected(rows, c)
    variance = _label_variance(c, slope)
    variance += sum(each.variance(rows.score[:, k], slope[:, k]) for k, each in enumerate(calibrations))
    half = _Z * np.sqrt(variance)
    return Expectation(value, float(np.maximum(metric.low, value - half)), float(np.minimum(metric.high, value + half)))


def _label_variance(c: np.ndarray, slope: np.ndarray) -> float:
    """Return the variance of the sum of slopes at independent labels, in each row one."""
    if c.shape[1] == 1:
        return float((slope**2 * c * (1 - c)).sum())
    return float((c * slope**2).sum() - ((c * slope).sum(1) ** 2).sum())


def _drawn(metric: SampledMetric, rows: ScoredRows, c: np.ndarray, seed: int) -> Expectation:
    random = np.random.default_rng(seed)
    values = np.array([metric.of(rows, _labels(c, random)) for _ in range(metric.draws)])
    low, high = np.quantile(values, [0.025, 0.975])
    error = values.std(ddof=1) / np.sqrt(metric.draws)
    return Expectation(float(values.mean()), float(low), float(high), float(error))


def _labels(c: np.ndarray, random: np.random.Generator) -> np.ndarray:
    uniform = random.random(len(c))
    if c.shape[1] == 1:
        return (uniform < c[:, 0]).astype(np.int64)
    return np.minimum((np.cumsum(c, 1) < uniform[:, None]).sum(1), c.shape[1] - 1)
