"""At which learning rate a signal will cross a limit at a larger size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise.preflight.sweeps.forecast_signal import forecast_signal
from poise.preflight.sweeps.sweep import SweepResult

_SIZES_FOR_A_PARABOLA = 5  # three sizes lie on one exactly: they determine no more than a straight line


@dataclass(frozen=True, slots=True)
class LRCrossing:
    """A signal expected at a larger size, over learning rates, and where it crosses a limit.

    Args:
        size: the larger size.
        threshold: the limit.
        lrs: learning rates at which every size has the signal.
        expected: the signal expected there, with its lowest and highest value among the fits that leave a size out.
        lr: where the expected signal crosses the limit; infinite if it does not up to the last of ``lrs``; the first
            of them if it is above it from there on.
        interval: the same for the highest and the lowest of the fits. No confidence interval: it shows how much one
            size decides.
    """

    size: float
    threshold: float
    lrs: tuple[float, ...]
    expected: tuple[tuple[float, float, float], ...]
    lr: float
    interval: tuple[float, float]


def lr_crossing(result: SweepResult, signal: str, size: float, threshold: float = 1e4) -> LRCrossing | None:
    """Forecast a signal at a larger size for every learning rate of a sweep, and find where it crosses a limit.

    At each learning rate :func:`forecast_signal` extrapolates the geometric mean over seeds in the size (a straight
    line in logarithms, from five sizes on a parabola); between learning rates the crossing is interpolated in
    logarithms.

    Args:
        result: a sweep over at least three sizes.
        signal: its name; positive.
        size: the larger size.
        threshold: the limit, crossed from below.

    Returns:
        The crossing; ``None`` if fewer than three sizes have the signal at any learning rate.

    Raises:
        ValueError: if ``size`` or ``threshold`` is not positive and finite.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322.
    """
    if len(result.sizes) < 3 or not any(signal in point.signals for point in result.points):
        return None
    sizes = [float(s) for s in result.sizes if s is not None]
    values = np.array([_over_seeds(result, signal, s) for s in result.sizes])
    usable = (np.isfinite(values) & (values > 0)).all(axis=0)
    if not usable.any():
        return None
    degree = 2 if len(sizes) >= _SIZES_FOR_A_PARABOLA else 1
    fits = [forecast_signal(sizes, column, threshold, degree) for column in values[:, usable].T]
    expected = tuple(fit.predict(size) for fit in fits)
    lrs = tuple(np.array(result.lrs)[usable].tolist())
    middle, low, high = (_first_crossing(lrs, [row[i] for row in expected], threshold) for i in range(3))
    return LRCrossing(size, threshold, lrs, expected, middle, (high, low))


def _over_seeds(result: SweepResult, signal: str, size: int | None) -> np.ndarray:
    if not any(signal in point.signals for point in result.points if point.size == size):
        return np.full(len(result.lrs), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        means: np.ndarray = np.exp(np.log(result.signal(signal, size)).mean(axis=1))
    return means


def _first_crossing(lrs: Sequence[float], values: Sequence[float], threshold: float) -> float:
    above = [i for i, value in enumerate(values) if value >= threshold]
    if not above:
        return math.inf
    i = above[0]
    if i == 0 or not math.isfinite(values[i]):
        return lrs[i]
    share = math.log(threshold / values[i - 1]) / math.log(values[i] / values[i - 1])
    return math.exp(math.log(lrs[i - 1]) + share * math.log(lrs[i] / lrs[i - 1]))
