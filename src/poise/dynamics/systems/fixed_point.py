"""Fixed points of maps and equilibria of flows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.integrate
import scipy.sparse
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.flow import Flow
from poise.dynamics.systems.map import Map
from poise.dynamics.systems.system import System, check_state

Method = Literal["newton-krylov", "newton", "iterate", "anderson"]
_HISTORY = 5


class NotConverged(RuntimeError):
    """A search for a fixed point that ended without one.

    Args:
        message: what happened.
        residual: norm of the residual at the end.
    """

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A fixed point that was found.

    Attributes:
        x: the state, of shape (n,).
        residual: norm of ``F(x) - x`` (map) or ``f(x)`` (flow).
        n_steps: steps of the method.
    """

    x: Float[Tensor, " n"]
    residual: float
    n_steps: int


def find_fixed_point(
    system: System,
    x0: Float[Tensor, " n"],
    method: Method = "newton-krylov",
    tol: float = 1e-10,
    max_steps: int = 100,
) -> FixedPoint:
    """Find a state that a map or flow leaves where it is.

    Args:
        system: a ``Map`` or ``Flow``.
        x0: where to start, of shape (n,).
        method: ``"newton-krylov"`` (Jacobian products and GMRES; of many solutions it takes the nearest),
            ``"newton"`` (the whole Jacobian; sparse if the flow's is), ``"iterate"`` (follow the system itself: steps
            of a map, implicit integration over ever longer times of a flow), ``"anderson"`` (steps of a map, mixed
            over the last 5). The first two also find unstable points.
        tol: how small the norm of the residual has to be, as a fraction of max(1, norm of x).
        max_steps: steps of the method.

    Raises:
        ValueError: if an argument is out of range.
        NotConverged: if it ended without a fixed point; it holds the last residual.

    References:
        Knoll and Keyes (2004). Jacobian-free Newton-Krylov methods; Walker and Ni (2011). Anderson acceleration.
    """
    x = check_state("x0", x0)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    if not tol > 0 or max_steps < 1:
        raise ValueError(f"tol must be positive and max_steps at least 1, got {tol} and {max_steps}")
    if method == "anderson" and not isinstance(system, Map):
        raise ValueError("method 'anderson' accelerates the steps of a Map; for a Flow use 'newton-krylov'")
    if method == "iterate":
        advance = _iterate(system)
    elif method == "anderson":
        advance = _anderson(system)
    else:
        advance = _newton(system, _krylov_solve if method == "newton-krylov" else _direct_solve)
    return _search(system, x, advance, tol, max_steps, method)


Advance = Callable[[Tensor, Tensor], Tensor]


def _search(system: System, x: Tensor, advance: Advance, tol: float, max_steps: int, method: str) -> FixedPoint:
    residual = system.residual(x).detach()
    for step in range(max_steps + 1):
        size = float(torch.linalg.vector_norm(residual))
        if not np.isfinite(size):
            raise NotConverged(f"{method} left the finite numbers after {step} steps", size)
        if size <= tol * max(1.0, float(torch.linalg.vector_norm(x))):
            return FixedPoint(x, size, step)
        if step < max_steps:
            before, x = x, advance(x, residual)
            if torch.equal(before, x):
                raise NotConverged(f"{method} stopped: no step from here lowers the residual of {size:.3g}", size)
            residual = system.residual(x).detach()
    raise NotConverged(f"{method} did not converge in {max_steps} steps: the residual is still {size:.3g}", size)


def _newton(system: System, solve: Callable[[System, Tensor, Tensor], Tensor]) -> Advance:
    def advance(x: Tensor, residual: Tensor) -> Tensor:
        direction = -solve(system, x, residual)
        size = torch.linalg.vector_norm(residual)
        fraction = 1.0
        while fraction > 1e-6:  # halve the step until it lowers the residual; at rounding level none does
            ahead = x + fraction * direction
            if torch.linalg.vector_norm(system.residual(ahead)) <= (1.0 - 1e-4 * fraction) * size:
                return ahead
            fraction /= 2
        return x

    return advance


def _krylov_solve(system: System, x: Tensor, b: Tensor) -> Tensor:
    def product(v: np.ndarray) -> np.ndarray:
        return system.residual_jvp(x, torch.as_tensor(v.reshape(-1), dtype=x.dtype, device=x.device)).cpu().numpy()

    n = x.numel()
    right = b.cpu().numpy()
    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=product, dtype=right.dtype)
    # Starting from zero, GMRES never leaves the range of the Jacobian's powers: conserved totals stay what they are.
    # Loosely solved, because where the Jacobian is singular the last digits of the residual are not in its range.
    solution, _ = scipy.sparse.linalg.gmres(operator, right, rtol=1e-2, restart=min(n, 200), maxiter=2)
    return torch.as_tensor(solution, dtype=x.dtype, device=x.device)


def _direct_solve(system: System, x: Tensor, b: Tensor) -> Tensor:
    jacobian = system.jacobian(x)
    if isinstance(system, Map):
        jacobian = jacobian - np.eye(x.numel())
    right = b.cpu().numpy()
    try:
        if scipy.sparse.issparse(jacobian):
            solution = scipy.sparse.linalg.splu(jacobian).solve(right)
        else:
            solution = np.linalg.solve(jacobian, right)
    except (RuntimeError, np.linalg.LinAlgError) as error:
        size = float(torch.linalg.vector_norm(b))
        raise NotConverged(
            f"the Jacobian is singular where the residual is {size:.3g}; equilibria may form a manifold: "
            "use method='newton-krylov'",
            size,
        ) from error
    return torch.as_tensor(solution, dtype=x.dtype, device=x.device)


def _iterate(system: System) -> Advance:
    if isinstance(system, Flow):
        return _integrate(system)
    return lambda x, residual: x + residual


def _integrate(flow: Flow) -> Advance:
    duration = 1.0

    def advance(x: Tensor, residual: Tensor) -> Tensor:
        nonlocal duration
        x = integrate(flow, x, duration)
        duration *= 2.0
        return x

    return advance


def integrate(flow: Flow, x: Float[Tensor, " n"], duration: float, rtol: float = 1e-9) -> Float[Tensor, " n"]:
    """Follow a flow for a while, implicitly (BDF).

    Args:
        flow: the flow; its mass matrix must be invertible.
        x: where to start, of shape (n,).
        duration: how long.
        rtol: relative tolerance; the absolute one is a thousandth of it.

    Raises:
        NotConverged: if the integrator failed.
    """
    solve = flow.solve_mass()
    options: dict[str, Any] = {}
    if flow.has_jacobian and flow.mass is None:
        options["jac"] = lambda t, y: flow.jacobian(torch.as_tensor(y, dtype=x.dtype, device=x.device))

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        return solve(flow(torch.as_tensor(y, dtype=x.dtype, device=x.device)).detach().cpu().numpy())

    run = scipy.integrate.solve_ivp(
        velocity, (0.0, duration), x.cpu().numpy(), method="BDF", rtol=rtol, atol=1e-3 * rtol, **options
    )
    if not run.success:
        size = float(np.linalg.norm(velocity(0.0, run.y[:, -1])))
        raise NotConverged(f"the integrator stopped at time {run.t[-1]:.4g} of {duration:.4g}: {run.message}", size)
    return torch.as_tensor(run.y[:, -1], dtype=x.dtype, device=x.device)


def _anderson(system: System) -> Advance:
    states: deque[Tensor] = deque(maxlen=_HISTORY + 1)
    residuals: deque[Tensor] = deque(maxlen=_HISTORY + 1)

    def advance(x: Tensor, residual: Tensor) -> Tensor:
        states.append(x)
        residuals.append(residual)
        if len(states) == 1:
            return x + residual
        dx = torch.stack([b - a for a, b in zip(states, list(states)[1:], strict=False)], dim=1)
        df = torch.stack([b - a for a, b in zip(residuals, list(residuals)[1:], strict=False)], dim=1)
        weights = torch.linalg.lstsq(df, residual.unsqueeze(1), driver="gelsd" if df.device.type == "cpu" else None)
        return x + residual - ((dx + df) @ weights.solution).squeeze(1)

    return advance
