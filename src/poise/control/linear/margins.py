"""How much gain, phase lag and delay a linear loop can take before it is no longer stable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from poise.control.linear.loop import LinearLoop

_ON_THE_AXIS = 1e-5  # of the size of a root: how far rounding may move one that lies on the boundary
_HOLDS = 1e-6  # how well a crossing has to fulfil its equation, after it was refined


@dataclass(frozen=True, slots=True)
class Margins:
    """The margins of a stable loop. Frequencies are in radians per unit of time, ``nan`` where there is no crossing.

    Attributes:
        gain: the factor above 1 on the gain at which the loop stops being stable; infinite if none does.
        gain_frequency: where that happens.
        gain_low: the factor below 1 at which it stops being stable; 0 if none does.
        gain_low_frequency: where that happens.
        phase: the smallest phase shift, lag or lead, in degrees, that the loop does not bear; infinite if the gain is
            1 at no frequency.
        phase_frequency: where that happens.
        delay: the smallest delay that the loop does not bear, in units of time. Of a sampled loop, delays of whole
            sampling periods below it leave the loop stable.
        delay_frequency: where that happens.
    """

    gain: float
    gain_frequency: float
    gain_low: float
    gain_low_frequency: float
    phase: float
    phase_frequency: float
    delay: float
    delay_frequency: float


def margins(loop: LinearLoop) -> Margins:
    """Return gain, phase and delay margins of a stable loop.

    Crossings are not searched on a grid: where L is real, and where its absolute value is 1, are the eigenvalues of
    two matrix pencils, each then refined.

    Args:
        loop: the open loop, continuous or sampled; the feedback is u = -y.

    Raises:
        ValueError: if the closed loop is not stable, as it then has no margins.

    References:
        Åström and Murray (2021). Feedback Systems, chapter 10; Boyd, Balakrishnan and Kabamba (1989). A bisection
        method for computing the H-infinity norm (crossings as eigenvalues).

    Example:
        >>> integrator = LinearLoop.from_coefficients([1.0], [1.0, 0.0])
        >>> margins(integrator).delay  # pi / 2
        1.5707963267948966
    """
    _check_stable(loop)
    real, unit = phase_crossings(loop), gain_crossings(loop)
    values = loop.response(real)
    factors = {-1.0 / value.real: omega for omega, value in zip(real, values, strict=True) if value.real < -1e-12}
    above = min((f for f in factors if f > 1), default=math.inf)
    below = max((f for f in factors if f < 1), default=0.0)
    lags = np.angle(loop.response(unit)) + math.pi  # of a positive frequency, in [0, 2 pi): the lag that is left
    shifts = {float(min(lag, 2 * math.pi - lag)): float(omega) for lag, omega in zip(lags, unit, strict=True)}
    delays = {float(lag / omega): float(omega) for lag, omega in zip(lags, unit, strict=True) if omega > 0}
    shift, delay = min(shifts, default=math.inf), min(delays, default=math.inf)
    return Margins(
        gain=float(above),
        gain_frequency=float(factors.get(above, math.nan)),
        gain_low=float(below),
        gain_low_frequency=float(factors.get(below, math.nan)),
        phase=math.degrees(shift),
        phase_frequency=shifts.get(shift, math.nan),
        delay=delay,
        delay_frequency=delays.get(delay, math.nan),
    )


def phase_crossings(loop: LinearLoop) -> Float64[np.ndarray, " k"]:
    """Return the frequencies at which L is real, in increasing order; 0 and, if sampled, pi / dt are among them."""
    n = len(loop.A)
    left, right = _pencil(loop, coupled=False)
    left[2 * n, :n], left[2 * n, n : 2 * n] = loop.C, -loop.C
    ends = [0.0] if loop.dt is None else [0.0, math.pi / loop.dt]
    inner = _frequencies(loop, left, right, lambda value: value.imag / max(abs(value), 1e-300))
    finite = [omega for omega in (*ends, *inner) if np.isfinite(loop.response(omega))]
    return np.array(sorted(finite))


def gain_crossings(loop: LinearLoop) -> Float64[np.ndarray, " k"]:
    """Return the frequencies at which the absolute value of L is 1, in increasing order."""
    n = len(loop.A)
    left, right = _pencil(loop, coupled=True)
    left[2 * n, :n], left[2 * n, n : 2 * n] = loop.D * loop.C, loop.C
    left[2 * n, 2 * n] = loop.D**2 - 1
    inner = _frequencies(loop, left, right, lambda value: math.log(max(abs(value), 1e-300)))
    ends = [0.0] if loop.dt is None else [0.0, math.pi / loop.dt]
    at_ends = [omega for omega in ends if abs(abs(loop.response(omega)) - 1) <= _HOLDS]
    return np.array(sorted({*at_ends, *inner}))


def _pencil(loop: LinearLoop, coupled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a pencil for (state of L, state of L at the mirrored point, u), with an empty last row.

    The mirrored point is -s, or 1/z. ``coupled``: L at the mirrored point acts on the output of L, rather than on u.
    """
    A, B, C, D, n = loop.A, loop.B, loop.C, loop.D, len(loop.A)
    left, right = np.zeros((2 * n + 1, 2 * n + 1)), np.zeros((2 * n + 1, 2 * n + 1))
    first, second, last = slice(0, n), slice(n, 2 * n), slice(2 * n, 2 * n + 1)
    left[first, first], left[first, last], right[first, first] = A, B, np.eye(n)
    mirrored = np.zeros((n, 2 * n + 1))  # what drives the state at the mirrored point
    mirrored[:, second] = A
    mirrored[:, last] = B * D if coupled else B
    if coupled:
        mirrored[:, first] = B @ C
    if loop.dt is None:
        left[second], right[second, second] = mirrored, -np.eye(n)
    else:  # x / z = A x + B v, so x = z (A x + B v)
        left[second, second], right[second] = np.eye(n), mirrored
    return left, right


def _frequencies(
    loop: LinearLoop, left: np.ndarray, right: np.ndarray, error: Callable[[complex], float]
) -> list[float]:
    """Return the positive frequencies on the stability boundary among the eigenvalues of a pencil, refined."""
    alpha, beta = scipy.linalg.eig(left, right, right=False, homogeneous_eigvals=True)
    largest = max(float(np.abs(alpha).max()), 1e-300)
    roots = [a / b for a, b in zip(alpha, beta, strict=True) if abs(b) > 1e-13 * max(largest, abs(a))]
    if loop.dt is None:
        near = [abs(z.imag) for z in roots if abs(z.real) <= _ON_THE_AXIS * max(abs(z), 1e-12)]
    else:
        near = [abs(np.angle(z)) / loop.dt for z in roots if abs(abs(z) - 1) <= _ON_THE_AXIS]
    limit = math.inf if loop.dt is None else math.pi / loop.dt
    refined = (_refined(loop, omega, error) for omega in near if 0 < omega < limit * (1 - 1e-9))
    found: list[float] = []
    for omega in sorted(omega for omega in refined if omega is not None):
        if not found or omega - found[-1] > 1e-7 * omega:
            found.append(omega)
    return found


def _refined(loop: LinearLoop, omega: float, error: Callable[[complex], float]) -> float | None:
    """Return a crossing after a few secant steps; ``None`` if there is none near by."""

    def at(frequency: float) -> float:
        return float(error(complex(loop.response(frequency))))

    before, now = omega * (1 + 1e-6), omega
    e_before, e_now = at(before), at(now)
    for _ in range(8):
        if e_now == 0 or e_now == e_before:
            break
        after = now - e_now * (now - before) / (e_now - e_before)
        if not abs(after - omega) <= 1e-3 * omega:
            break
        before, e_before, now, e_now = now, e_now, after, at(after)
        if abs(now - before) <= 1e-15 * now:
            break
    return now if abs(e_now) <= _HOLDS else None


def _check_stable(loop: LinearLoop) -> None:
    values = np.linalg.eigvals(loop.closed()) if len(loop.A) else np.zeros(0)
    growth = values.real if loop.dt is None else np.log(np.maximum(np.abs(values), 1e-300))
    if len(values) and not growth.max() < 0:
        raise ValueError(
            "loop must be stable when it is closed, for it to have margins; got a closed loop with eigenvalue "
            f"{values[growth.argmax()]:.4g}"
        )
