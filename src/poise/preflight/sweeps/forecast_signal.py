"""Forecast at what model size a signal will cross a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial


@dataclass(frozen=True, slots=True)
class SignalForecast:
    """A polynomial in log size, with the fits that leave one size out.

    Args:
        threshold: the limit.
        crossing: smallest size, not below the smallest measured, at which the fit reaches the limit;
            infinite if it never does.
        interval: lowest and highest crossing among the fit and the leave-one-out fits. It shows how much one
            measurement decides; it is no confidence interval.
    """

    threshold: float
    crossing: float
    interval: tuple[float, float]
    _fits: tuple[Polynomial, ...]

    def predict(self, size: float) -> tuple[float, float, float]:
        """Return the signal expected at ``size``, and its lowest and highest value among the fits.

        Raises:
            ValueError: if ``size`` is not positive.
        """
        if not (math.isfinite(size) and size > 0):
            raise ValueError(f"size must be positive and finite, got {size!r}")
        values = [_power_of_ten(float(fit(math.log10(size)))) for fit in self._fits]
        return values[0], min(values), max(values)


def forecast_signal(
    sizes: Sequence[float], values: Sequence[float], threshold: float = 1e4, degree: int = 2
) -> SignalForecast:
    r"""Fit :math:`\log_{10}` of a signal by a polynomial in :math:`\log_{10}` of model size and find where it crosses.

    Use it with the attention logits of a fixed early step at one learning rate (they rise; runs above 1e4 diverged)
    or with the root mean square of gradients (they fall; at Adam's ``eps`` updates vanish). Whether the limit is
    crossed from below or from above follows from the trend between the smallest and the largest size.

    Args:
        sizes: model sizes, for example parameter counts; at least 3, strictly increasing.
        values: the signal at each size, positive.
        threshold: the limit, positive.
        degree: degree of the polynomial. A leave-one-out fit with too few points for it uses the largest it can.

    Raises:
        ValueError: if there are fewer than 3 sizes or too few for ``degree``, sizes do not increase, lengths differ,
            or a number is not positive and finite.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322.

    Example:
        >>> forecast = forecast_signal([1e5, 1e6, 1e7], [10.0, 100.0, 1000.0], threshold=1e4)
        >>> f"{forecast.crossing:.3g}"
        '1e+08'
    """
    size, value = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    _require_measurements(size, value, threshold, degree)
    x, y = np.log10(size), np.log10(value)
    everything = np.ones(x.size, dtype=bool)
    masks = [everything, *(everything & (np.arange(x.size) != left_out) for left_out in range(x.size))]
    fits = tuple(Polynomial.fit(x[m], y[m], min(degree, int(m.sum()) - 1)) for m in masks)
    rising = y[-1] >= y[0]
    crossings = [_power_of_ten(_first_crossing(fit, math.log10(threshold), x[0], rising)) for fit in fits]
    return SignalForecast(threshold, crossings[0], (min(crossings), max(crossings)), fits)


def _first_crossing(fit: Polynomial, level: float, start: float, rising: bool) -> float:
    distance = fit - level
    here = distance(start)
    if (here >= 0) if rising else (here <= 0):
        return float(start)
    # A fit of a straight line by a parabola has a leading coefficient of rounding size and a root far outside.
    scale = np.abs(distance.coef).max()
    roots = distance.trim(scale * 1e-12).roots()
    real = roots[np.abs(roots.imag) < 1e-9].real
    beyond = real[real > start]
    return float(beyond.min()) if beyond.size else math.inf


def _power_of_ten(exponent: float) -> float:
    return 10.0**exponent if exponent < 308 else math.inf


def _require_measurements(size: np.ndarray, value: np.ndarray, threshold: float, degree: int) -> None:
    if size.ndim != 1 or size.size < 3:
        raise ValueError(f"sizes must be a list of at least 3, got shape {size.shape}")
    if value.shape != size.shape:
        raise ValueError(f"values must have one entry per size, shape {size.shape}, got {value.shape}")
    for name, numbers in {"sizes": size, "values": value, "threshold": np.asarray(threshold)}.items():
        if not (np.isfinite(numbers).all() and (numbers > 0).all()):
            raise ValueError(f"{name} must be positive and finite, got {numbers.tolist()}")
    if not (np.diff(size) > 0).all():
        raise ValueError(f"sizes must be strictly increasing, got {size.tolist()}")
    if not 1 <= degree < size.size:
        raise ValueError(f"degree must lie in [1, {size.size - 1}] for {size.size} sizes, got {degree!r}")
