"""How the audit of a closed loop measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from poise.control.closed_loop_audit.facts import ClosedLoopFacts, HullFacts, ModelFacts
from poise.control.closed_loop_audit.hull import Hull
from poise.control.closed_loop_audit.plant import Batched, ClosedLoop, in_batches
from poise.control.linear.largest_stable import largest_stable
from poise.control.linear.loop import LinearLoop, held_input
from poise.control.linear.margins import Margins, margins
from poise.control.region.attracted_region import AttractedRegion, Level, attracted_region, checked_box
from poise.control.region.state_difference import state_difference
from poise.control.sdre.tracking import rk4_step
from poise.dynamics import (
    Map,
    NotConverged,
    RateFit,
    Stability,
    central_difference,
    decay_rate,
    find_fixed_point,
    stability,
)
from poise.tools.progress_bar import fraction_bar

_SHOWN, _TIMES = 24, 25  # runs and times at which the hull is looked at
_MODEL_STATES = 200
_AT_EQUILIBRIUM = 1e-6
_MOST_STEPS, _FEWEST_STEPS = 2000, 50
_TIME_CONSTANTS = 10
_FOLLOWED = 5000  # periods for which a perturbation is followed


def measure(
    plant: Any,
    controller: Any,
    *,
    x0: Any,
    box: tuple[Any, Any],
    dt: float,
    model: Any,
    train_states: Any,
    angles: Sequence[int],
    input_limits: tuple[Any, Any] | None,
    batched: bool,
    n_samples: int,
    horizon: float | None,
    seed: int,
    progress: bool | None,
) -> ClosedLoopFacts:
    """Return what the audit measures; arguments and errors are those of :func:`audit_closed_loop`."""
    goal, low, high = checked_box(x0, box)
    if not 0 < dt < math.inf:
        raise ValueError(f"dt must be positive and finite, got {dt!r}")
    if horizon is not None and not dt <= horizon < math.inf:
        raise ValueError(f"horizon must be finite and at least one period dt, got {horizon!r}")
    points = _training_states(train_states, len(goal))
    loop = ClosedLoop(plant, controller, goal, dt, input_limits, batched)
    half, angles, missing = (high - low) / 2, tuple(angles), []
    local, offset, at = _local(loop, goal, half, angles)
    u_at = loop.inputs(at[None])[0]
    region: AttractedRegion | None = None
    found_model: ModelFacts | None = None
    hull: HullFacts | None = None
    rate: RateFit | None = None
    bears: tuple[Margins, ...] = ()
    factor: float | None = None
    if local is None:
        missing.append("Rates and margins: no equilibrium was found near the goal.")
    elif local.verdict == "unstable":
        missing.append("Margins: the loop is not stable at the goal, so it has none.")
    else:
        rate = _measured_rate(loop, at, half, angles, local)
        bears, factor = _margins(loop, at, u_at, dt, missing)
    steps = _steps(local, dt, horizon)
    paths, saturated, saturated_failing = np.zeros((0, 0, len(goal))), None, math.nan
    with fraction_bar(f"{n_samples} starts of {steps} periods", progress) as advance:
        try:
            advance(0.0, "region")
            level = _level(loop, local, at, half, angles)
            if not loop.vectorised:
                level = None
                missing.append("The sampled level set: plant and controller take one state at a time; see batched.")
            elif level is None:
                missing.append("The sampled level set: the linearised loop is not stable, so its cost is not finite.")
            region = attracted_region(
                loop, at, (low, high), steps=steps, level=level, n_samples=n_samples, angles=angles, seed=seed
            )
            advance(0.6, "runs")
            paths, saturated, saturated_failing = _runs(loop, region, steps)
            if model is not None:
                advance(0.7, "model")
                found_model = _model(loop, model, region, at, half, (low, high), angles, steps, batched, dt, seed)
            if points is not None:
                advance(0.9, "hull")
                hull = _hull(points, paths, region, dt * steps / (paths.shape[1] - 1), seed)
        except KeyboardInterrupt:
            missing.append("What follows: the sampling was interrupted.")
    if model is None:
        missing.append("Derivatives of a learned model: no model was given.")
    if points is None:
        missing.append("The hull of the training states: train_states were not given.")
    if loop.limits is None:
        missing.append("Saturation: input_limits were not given.")
    return ClosedLoopFacts(
        n=len(goal),
        m=loop.m,
        dt=dt,
        steps=steps,
        offset=offset,
        local=local,
        measured_rate=rate,
        margins=bears,
        period_factor=factor,
        region=region,
        saturated=saturated,
        saturated_failing=saturated_failing,
        model=found_model,
        hull=hull,
        paths=paths,
        not_checked=tuple(missing),
        seed=seed,
    )


def _training_states(states: Any, n: int) -> np.ndarray | None:
    if states is None:
        return None
    points = np.asarray(states.detach().cpu() if isinstance(states, Tensor) else states, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != n or len(points) < 2:
        raise ValueError(f"train_states must have shape (samples, {n}) with at least 2 samples, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("train_states must be finite, got NaN or infinite entries")
    return points


# --- at the goal -------------------------------------------------------------------------------------------------


def _map(step: Batched, centre: Tensor, half: Tensor, angles: tuple[int, ...]) -> Map:
    """Return the closed loop in half widths of the box, with the centre at 0."""

    def field(z: Tensor) -> Tensor:
        return state_difference(step((centre + half * z)[None])[0], centre, angles) / half

    return Map(field, central_difference(field))


def _local(
    loop: ClosedLoop, goal: Tensor, half: Tensor, angles: tuple[int, ...]
) -> tuple[Stability | None, float, Tensor]:
    """Return the stability at the equilibrium, its distance from the goal, and where it is."""
    scaled = _map(loop, goal, half, angles)
    zero = torch.zeros_like(goal)
    if float(scaled(zero).norm()) <= _AT_EQUILIBRIUM:
        return stability(scaled, zero), 0.0, goal
    try:
        found = find_fixed_point(scaled, zero).x
    except NotConverged:
        return None, math.nan, goal
    at = goal + half * found
    if float(found.abs().max()) > 1:
        return None, math.nan, goal
    return stability(_map(loop, at, half, angles), zero), float(found.norm()), at


def _measured_rate(
    loop: ClosedLoop, at: Tensor, half: Tensor, angles: tuple[int, ...], local: Stability
) -> RateFit | None:
    if not local.rate > 6 / _FOLLOWED:
        return None
    try:
        return decay_rate(_map(loop, at, half, angles), torch.zeros_like(at))
    except ValueError:  # it sank into rounding: faster than what can be followed
        return None


def _jacobian(function: Batched, x: Tensor) -> np.ndarray:
    """Return central differences of a function of one vector."""
    product = central_difference(lambda y: function(y[None])[0])
    return torch.stack([product(x, unit) for unit in torch.eye(len(x), dtype=x.dtype)], 1).numpy()


def _margins(
    loop: ClosedLoop, at: Tensor, u_at: Tensor, dt: float, missing: list[str]
) -> tuple[tuple[Margins, ...], float | None]:
    A = _jacobian(lambda x: loop.next(x, u_at[None].expand(len(x), -1)), at)
    B = _jacobian(lambda u: loop.next(at[None].expand(len(u), -1), u), u_at)
    K = -_jacobian(loop.inputs, at)
    found = []
    for i in range(loop.m):
        others = [j for j in range(loop.m) if j != i]
        try:
            found.append(margins(LinearLoop(A - B[:, others] @ K[others], B[:, i], K[i], dt=dt)))
        except ValueError as error:
            missing.append(f"Margins of input {i}: {error}.")
    return tuple(found), _period_factor(loop, at, u_at, K, dt, missing)


def _period_factor(
    loop: ClosedLoop, at: Tensor, u_at: Tensor, K: np.ndarray, dt: float, missing: list[str]
) -> float | None:
    if loop.velocity is None:
        missing.append("The margin of the sampling period: an environment has one fixed step.")
        return None
    velocity = loop.velocity
    A = _jacobian(lambda x: velocity(x, u_at[None].expand(len(x), -1)), at)
    B = _jacobian(lambda u: velocity(at[None].expand(len(u), -1), u), u_at)

    def closed(period: float) -> np.ndarray:
        Ad, Bd = held_input(A, B, period)
        return np.asarray(Ad - Bd @ K)

    try:
        return largest_stable(closed, dt, 1e3 * dt, kind="map") / dt
    except ValueError as error:
        missing.append(f"The margin of the sampling period: {error}.")
        return None


def _steps(local: Stability | None, dt: float, horizon: float | None) -> int:
    if horizon is not None:
        return math.ceil(horizon / dt)
    if local is None or not local.rate > 0:
        return 500
    return int(min(max(math.ceil(_TIME_CONSTANTS / local.rate), _FEWEST_STEPS), _MOST_STEPS))


def _level(
    loop: ClosedLoop, local: Stability | None, at: Tensor, half: Tensor, angles: tuple[int, ...]
) -> Level | None:
    """Return the quadratic form that falls along the linearised loop; ``None`` where that is not stable."""
    if local is None or local.verdict != "stable":
        return None
    jacobian = np.asarray(_map(loop, at, half, angles).jacobian(torch.zeros_like(at)))
    P = torch.as_tensor(scipy.linalg.solve_discrete_lyapunov(jacobian.T, np.eye(len(at))))

    def level(x: Tensor) -> Tensor:
        z = state_difference(x, at, angles) / half
        return ((z @ P) * z).sum(-1)

    return level


# --- in the box --------------------------------------------------------------------------------------------------


def _runs(loop: ClosedLoop, region: AttractedRegion, steps: int) -> tuple[np.ndarray, float | None, float]:
    """Follow the starts again (some of them where that is slow); return a few paths and how often inputs saturate."""
    count = len(region.states) if loop.vectorised else min(len(region.states), 2 * _SHOWN)
    x, failing = region.states[:count], ~region.attracted[:count]
    wanted = {round(steps * k / (_TIMES - 1)) for k in range(_TIMES)}
    paths, at_limit, at_limit_failing, seen, seen_failing = [x[:_SHOWN]], 0.0, 0.0, 0, 0
    for step in range(1, steps + 1):
        u = loop.inputs(x)
        if loop.limits is not None:
            alive = torch.isfinite(x).all(-1)
            saturated = loop.saturated(u).double().mean(-1)
            at_limit, seen = at_limit + float(saturated[alive].sum()), seen + int(alive.sum())
            lost = alive & failing
            at_limit_failing, seen_failing = (
                at_limit_failing + float(saturated[lost].sum()),
                seen_failing + int(lost.sum()),
            )
        x = loop.next(x, u)
        if step in wanted:
            paths.append(x[:_SHOWN])
    shown = torch.stack(paths, 1).numpy()
    if loop.limits is None:
        return shown, None, math.nan
    return shown, at_limit / max(seen, 1), at_limit_failing / seen_failing if seen_failing else math.nan


def _model(
    loop: ClosedLoop,
    model: Any,
    region: AttractedRegion,
    at: Tensor,
    half: Tensor,
    box: tuple[Tensor, Tensor],
    angles: tuple[int, ...],
    steps: int,
    batched: bool,
    dt: float,
    seed: int,
) -> ModelFacts:
    learned, fast = in_batches(model, batched, at, loop.inputs(at[None])[0])
    true = loop.velocity or loop.next
    x = region.states[:_MODEL_STATES]
    u = loop.inputs(x)
    said, is_so = learned(x, u), true(x, u)
    if said.shape != is_so.shape:
        raise ValueError(f"model must return a vector of the shape of the state, got {tuple(said.shape[1:])}")
    r2 = 1 - float((said - is_so).square().sum() / (is_so - is_so.mean(0)).square().sum())

    def derivative(function: Batched) -> Tensor:
        return _batch_jacobian(function, x, u, half)

    wrong, right = derivative(learned), derivative(true)
    errors = (wrong - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)

    def step(states: Tensor) -> Tensor:
        inputs = loop.inputs(states)
        return learned(states, inputs) if loop.velocity is None else rk4_step(learned, states, inputs, dt)

    scaled = _map(step, at, half, angles)
    eigenvalues = np.linalg.eigvals(np.asarray(scaled.jacobian(torch.zeros_like(at))))
    growth = math.log(max(float(np.abs(eigenvalues).max()), 1e-300)) / dt
    count = len(region.states) if fast else min(len(region.states), 2 * _SHOWN)
    z = region.states[:count]
    for _ in range(steps):
        z = step(z)
    # Near its own equilibrium is near enough: a model's may lie beside the plant's.
    near = (state_difference(z, at, angles) / half).norm(dim=-1) <= 0.1
    return ModelFacts(
        r2=r2,
        derivative_error=float(errors.median()),
        growth=growth,
        attracted=float(near.double().mean()),
        misled=float((near & ~region.attracted[:count]).double().mean()),
    )


def _batch_jacobian(function: Batched, x: Tensor, u: Tensor, half: Tensor) -> Tensor:
    """Return derivatives in the state along each axis, in half widths of the box, of shape (batch, n, n)."""
    width = 1e-4 * half
    columns = []
    for i in range(x.shape[1]):
        move = torch.zeros_like(half)
        move[i] = width[i]
        columns.append((function(x + move, u) - function(x - move, u)) / 2e-4 / half)
    return torch.stack(columns, -1)


def _hull(points: np.ndarray, paths: np.ndarray, region: AttractedRegion, interval: float, seed: int) -> HullFacts:
    hull, (runs, times, n) = Hull(points, seed), paths.shape
    finite = np.isfinite(paths).all(-1)
    inside = hull.contains(np.where(np.isfinite(paths), paths, 0.0).reshape(-1, n)).reshape(runs, times) & finite
    started_outside = ~inside[:, 0]
    left = inside[:, 0] & ~inside.all(1)
    first = (~inside[left]).argmax(1) * interval
    ever, failed = started_outside | left, ~region.attracted[:runs].numpy()
    return HullFacts(
        runs=runs,
        outside=float(started_outside.mean()),
        left=float(left.mean()),
        first_exit=float(np.median(first)) if len(first) else math.nan,
        left_failing=float(failed[ever].mean()) if ever.any() else math.nan,
    )
