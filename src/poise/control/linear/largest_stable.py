"""The largest value of one parameter (a gain, a sampling period, a mass) up to which a linear loop is stable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from poise.control.linear.loop import held_input

_NEUTRAL = 1e-7  # what rounding can add to a double eigenvalue on the boundary: the root of the precision


def largest_stable(
    closed_loop: Callable[[float], Any],
    low: float,
    high: float,
    *,
    kind: Literal["flow", "map"],
    ratio: float = 1.02,
) -> float:
    """Return the value of a parameter at which a family of closed loops first stops being stable.

    The family is followed from ``low`` upwards in steps of a constant ratio, and the first change is bisected. Neutral
    modes (growth up to 1e-7 of the fastest rate, or per step) count as stable.

    Args:
        closed_loop: takes the parameter, returns the matrix of the closed loop, of shape (n, n).
        low: the smallest value, positive, at which the loop has to be stable.
        high: the largest value that is tried.
        kind: ``"flow"`` if the matrix is that of x' = A x, ``"map"`` if that of x+ = A x.
        ratio: of one tried value to the next, above 1; an unstable stretch narrower than that can be missed.

    Returns:
        The parameter; infinite if the loop is stable at all values that were tried.

    Raises:
        ValueError: if the loop is unstable at ``low``, or an argument is out of range.

    Example:
        >>> def semi_implicit_euler(kp, inertia=2.0, dt=0.1):  # of inertia * q'' = -kp * q
        ...     return [[1 - dt * dt * kp / inertia, dt], [-dt * kp / inertia, 1.0]]
        >>> round(largest_stable(semi_implicit_euler, 1.0, 1e4, kind="map"), 6)  # 4 * inertia / dt ** 2
        800.0
    """
    if kind not in ("flow", "map"):
        raise ValueError(f"kind must be 'flow' or 'map', got {kind!r}")
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must be positive, finite and increasing, got {low!r} and {high!r}")
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio must be above 1, got {ratio!r}")
    if not _is_stable(closed_loop(low), kind):
        raise ValueError(f"the closed loop must be stable at low = {low:g}, got an unstable one")
    steps = math.ceil(math.log(high / low) / math.log(ratio))
    inside = low
    for step in range(1, steps + 1):
        value = min(low * ratio**step, high)
        if not _is_stable(closed_loop(value), kind):
            return _bisected(closed_loop, kind, inside, value)
        inside = value
    return math.inf


def sampling_margin(A: Any, B: Any, K: Any, high: float | None = None) -> float:
    """Return the sampling period at which the feedback u = -K x, held over each period, first stops being stable.

    Args:
        A: of the flow x' = A x + B u, of shape (n, n).
        B: of shape (n, m).
        K: gain, of shape (m, n).
        high: longest period that is tried; by default a thousand times the inverse of the fastest rate.

    Returns:
        The period; infinite if no period that was tried is too long.

    Raises:
        ValueError: if shapes do not fit, or the loop is unstable without sampling.

    Example:
        >>> round(sampling_margin([[0.0]], [[1.0]], [[4.0]]), 6)  # 1 - 4 dt = -1
        0.5
    """
    A, B, K = (np.atleast_2d(np.asarray(matrix, float)) for matrix in (A, B, K))
    n, m = B.shape
    if A.shape != (n, n) or K.shape != (m, n):
        raise ValueError(f"A, B and K must have shapes (n, n), (n, m), (m, n); got {A.shape}, {B.shape}, {K.shape}")
    values = np.linalg.eigvals(A - B @ K)
    if not values.real.max() < 0:
        raise ValueError(
            "the loop must be stable without sampling, got a closed loop with eigenvalue "
            f"{values[values.real.argmax()]:.4g}"
        )
    fastest = max(float(np.linalg.norm(A, 2)), float(np.abs(values).max()))

    def closed(dt: float) -> np.ndarray:
        Ad, Bd = held_input(A, B, dt)
        return Ad - Bd @ K

    return largest_stable(closed, 1e-3 / fastest, 1e3 / fastest if high is None else high, kind="map")


def _is_stable(matrix: Any, kind: str) -> bool:
    array = np.asarray(matrix, float)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.isfinite(array).all():
        raise ValueError(f"closed_loop must return a finite square matrix, got shape {array.shape}")
    values = np.linalg.eigvals(array)
    if kind == "flow":
        return bool(values.real.max() <= _NEUTRAL * max(float(np.abs(values).max()), 1e-300))
    return bool(np.abs(values).max() <= 1 + _NEUTRAL)


def _bisected(closed_loop: Callable[[float], Any], kind: str, inside: float, outside: float) -> float:
    while outside - inside > 1e-12 * outside:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        if _is_stable(closed_loop(middle), kind):
            inside = middle
        else:
            outside = middle
    return inside
