"""Where an estimate counts as an alert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise.shift.estimation.metrics import AnyMetric


@dataclass(frozen=True, slots=True)
class ConstantThreshold:
    """Fixed bounds; None for no bound."""

    low: float | None = None
    high: float | None = None

    def bounds(self, metric: AnyMetric, reference: float, chunks: Sequence[float]) -> tuple[float, float]:
        """Return the bounds."""
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high


@dataclass(frozen=True, slots=True)
class DeviationThreshold:
    """Mean of the metric over chunks of the reference, plus and minus ``times`` their standard deviation.

    A bound outside the metric's range becomes the end of the range. Reference and production are divided in the same
    way; where the reference makes fewer than two chunks, it is divided into ten.
    """

    times: float = 3.0

    def __post_init__(self) -> None:
        if not self.times > 0:
            raise ValueError(f"times must be positive, got {self.times}")

    def bounds(self, metric: AnyMetric, reference: float, chunks: Sequence[float]) -> tuple[float, float]:
        """Return the bounds."""
        known = np.array([value for value in chunks if math.isfinite(value)])
        if len(known) < 2:
            raise ValueError(f"threshold: {metric.name} is defined on {len(known)} chunks of the reference, needs 2")
        mean, deviation = float(known.mean()), float(known.std())
        return max(metric.low, mean - self.times * deviation), min(metric.high, mean + self.times * deviation)


@dataclass(frozen=True, slots=True)
class IntervalThreshold:
    """Bounds at the value on the reference, less and more ``margin``: an alert where the whole interval is beyond."""

    margin: float = 0.0

    def bounds(self, metric: AnyMetric, reference: float, chunks: Sequence[float]) -> tuple[float, float]:
        """Return the bounds."""
        return reference - self.margin, reference + self.margin


Threshold = ConstantThreshold | DeviationThreshold | IntervalThreshold
