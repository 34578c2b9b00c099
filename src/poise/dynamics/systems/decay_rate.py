"""The rate at which perturbations of an equilibrium die out, measured by letting one do so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.integrate
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from poise.dynamics.systems.fixed_point import NotConverged
from poise.dynamics.systems.flow import Flow
from poise.dynamics.systems.stability import stability
from poise.dynamics.systems.system import System, check_state

_SIZE = 1e-5
_POINTS = 240
_BLOCKS = 8
_TIME_CONSTANTS = 6.0
_FITTED_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class RateFit:
    """A decay rate fitted to a perturbation's course.

    Attributes:
        rate: per step or unit of time; negative if the perturbation grew.
        ci: 95 % interval of the rate, from the rates of eight consecutive parts: wide where the decay is not yet (or
            no longer) exponential.
        r2: fraction of the variance of the logarithm that a straight line explains.
    """

    rate: float
    ci: tuple[float, float]
    r2: float


def decay_rate(
    system: System,
    x_star: Float[Tensor, " n"],
    direction: Float[Tensor, " n"] | None = None,
    t_max: float | None = None,
) -> RateFit:
    """Perturb an equilibrium a little (1e-5 of its scale) and fit how fast the system returns.

    The difference from the equilibrium is what is followed, so that tolerances are relative to it. The last 40 % of
    the time are fitted. A random direction holds little of the slowest mode and gives too high a rate.

    Args:
        system: a ``Map`` or ``Flow``.
        x_star: the equilibrium, of shape (n,).
        direction: of the perturbation, of shape (n,); by default the slowest direction that is not neutral.
        t_max: steps or time to follow; by default six time constants of that direction.

    Raises:
        ValueError: if ``x_star`` is not an equilibrium, an argument is out of range, no direction decays or grows, or
            the perturbation sinks into rounding before the end.
        NotConverged: if the integrator fails.
    """
    x = check_state("x_star", x_star)
    if direction is None or t_max is None:
        slowest, rate = _slowest(system, x)
        direction = slowest if direction is None else direction
        t_max = _TIME_CONSTANTS / abs(rate) if t_max is None else t_max
    if not 0 < t_max < math.inf:
        raise ValueError(f"t_max must be positive and finite, got {t_max}")
    along = check_state("direction", direction).to(x)
    length = float(torch.linalg.vector_norm(along))
    if along.shape != x.shape or not length > 0:
        raise ValueError(f"direction must be a nonzero vector of shape {tuple(x.shape)}, got {tuple(along.shape)}")
    start = _SIZE * max(1.0, float(torch.linalg.vector_norm(x))) * along / length
    if isinstance(system, Flow):
        times, sizes = _follow_flow(system, x, start, t_max)
    else:
        times, sizes = _follow_map(system, x, start, t_max)
    _check_above_rounding(sizes, x)
    return _fit(times, np.log(sizes))


def _slowest(system: System, x: Tensor) -> tuple[Tensor, float]:
    found = stability(system, x)
    moving = np.flatnonzero(np.abs(found.growth_rates) > found.tolerance)
    if not len(moving):
        raise ValueError("no computed direction decays or grows; give direction and t_max")
    vector = found.leading_vectors[:, moving[0]].real
    return torch.as_tensor(vector.copy(), dtype=x.dtype, device=x.device), float(found.growth_rates[moving[0]])


def _follow_flow(flow: Flow, x: Tensor, start: Tensor, t_max: float) -> tuple[np.ndarray, np.ndarray]:
    solve, rest = flow.solve_mass(), flow(x).detach()
    size = float(torch.linalg.vector_norm(start))

    def velocity(t: float, d: np.ndarray) -> np.ndarray:
        change = flow(x + torch.as_tensor(d, dtype=x.dtype, device=x.device)).detach() - rest
        return solve(change.cpu().numpy())

    options: dict[str, Any] = {}
    if flow.has_jacobian and flow.mass is None:
        options["jac"] = _constant(flow.jacobian(x))
    times = np.linspace((1 - _FITTED_SHARE) * t_max, t_max, _POINTS)
    run = scipy.integrate.solve_ivp(
        velocity, (0.0, t_max), start.cpu().numpy(), "BDF", times, rtol=1e-8, atol=1e-9 * size, **options
    )
    if not run.success:
        raise NotConverged(f"the integrator stopped before time {t_max:.4g}: {run.message}", math.nan)
    return times, np.linalg.norm(run.y, axis=0)


def _constant(jacobian: Any) -> Callable[[float, np.ndarray], Any]:
    return lambda t, d: jacobian


def _follow_map(system: System, x: Tensor, start: Tensor, t_max: float) -> tuple[np.ndarray, np.ndarray]:
    n_steps = max(math.ceil(t_max), 2 * _BLOCKS)
    rest, state, sizes = system(x).detach(), x + start, []
    for _ in range(n_steps):
        state = system(state).detach()
        sizes.append(float(torch.linalg.vector_norm(state - rest)))
    first = min(int((1 - _FITTED_SHARE) * n_steps), n_steps - _BLOCKS - 1)
    return np.arange(first + 1.0, n_steps + 1.0), np.array(sizes[first:])


def _check_above_rounding(sizes: np.ndarray, x: Tensor) -> None:
    floor = 100 * torch.finfo(x.dtype).eps * max(1.0, float(torch.linalg.vector_norm(x)))
    if not np.isfinite(sizes).all():
        raise ValueError("the perturbation left the finite numbers; lower t_max")
    if sizes.min() < floor:
        raise ValueError(f"the perturbation sank to {sizes.min():.1e}, into rounding, before the end; lower t_max")


def _fit(times: np.ndarray, logs: np.ndarray) -> RateFit:
    line = stats.linregress(times, logs)
    ends = np.linspace(0, len(times) - 1, _BLOCKS + 1).astype(int)
    rates = -np.diff(logs[ends]) / np.diff(times[ends])
    # Points of one course are not independent draws: what varies is the slope from part to part.
    half = float(stats.t.ppf(0.975, _BLOCKS - 1) * rates.std(ddof=1) / math.sqrt(_BLOCKS))
    rate = -float(line.slope)
    return RateFit(rate, (rate - half, rate + half), float(line.rvalue) ** 2)
