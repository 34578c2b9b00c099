"""Where gradient flow ends: ``dw/dt = -grad L(w)`` followed to rest by stiff and by explicit integrators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import BDF, RK45
from torch import Tensor

Vector = Float[Tensor, " parameters"]
Method = Literal["bdf", "rk45"]
_LEAST_RTOL = 100 * np.finfo(float).eps
"""Below it SciPy takes this and warns."""
State = tuple[float, Vector, Vector]
"""Time, point and gradient there."""


@dataclass(frozen=True, slots=True)
class FlowResult:
    """The end of a gradient flow.

    Args:
        x: last point, shape (parameters,), float64.
        converged: whether the flow came to rest, that is the gradient fell below the tolerance.
        reason: why the integration ended: ``"at rest"``, ``"t_max"``, ``"max_evals"``, ``"step too small"``, or what
            ``stop`` returned true.
        n_evals: gradients computed, those for differences of gradients included.
        grad_norm: norm of the gradient at ``x``.
        t: time reached.
    """

    x: Vector
    converged: bool
    reason: str
    n_evals: int
    grad_norm: float
    t: float


def gradient_flow_limit(
    grad: Callable[[Vector], Vector],
    w0: Vector,
    *,
    hess: Callable[[Vector], Float[Tensor, "parameters parameters"]] | None = None,
    method: Method = "bdf",
    tol: float = 1e-8,
    rtol: float = 1e-7,
    t_max: float = 1e6,
    max_evals: int = 20000,
    stop: Callable[[Vector, Vector], str | None] | None = None,
) -> FlowResult:
    """Follow gradient flow from ``w0`` until it rests.

    Args:
        grad: gradient of the loss at a flat float64 vector.
        w0: where to start, shape (parameters,).
        hess: Hessian there; ``"bdf"`` otherwise takes one from ``parameters`` differences of gradients, a few times.
        method: ``"bdf"`` (implicit, variable order, for up to about 500 parameters: it factors the Hessian) or
            ``"rk45"`` (explicit, order 5, steps of at most 2 / largest curvature, for more parameters).
        tol: norm of the gradient at which the flow counts as at rest.
        rtol: relative error per step; the absolute one is a thousand times smaller.
        t_max: time at which to give up. A loss without a minimum (cross entropy of separable data) gets here.
        max_evals: number of gradients at which to give up, checked after each step.
        stop: called with point and gradient after each step; a text ends the flow and becomes the ``reason``.

    Returns:
        The end of the flow. It has ``converged`` only if the gradient fell below ``tol``.

    Raises:
        ValueError: if ``method`` is unknown, ``w0`` is no vector, a limit is not positive, or a gradient is not finite.

    References:
        Kreisler et al. (2023). arXiv:2305.13064. Shampine and Reichelt (1997). The MATLAB ODE suite (BDF).
    """
    _check(w0, method, {"tol": tol, "rtol": rtol, "t_max": t_max, "max_evals": max_evals})
    field = _Field(grad, hess)
    for t, x, g in _METHODS[method](field, w0.detach().to(torch.float64), rtol, t_max):
        norm = float(torch.linalg.vector_norm(g))
        if not np.isfinite(norm):
            raise ValueError(f"grad must return finite values, got a norm of {norm} at t = {t:.4g}")
        if norm < tol:
            return FlowResult(x, True, "at rest", field.n_evals, norm, t)
        reason = "max_evals" if field.n_evals >= max_evals else stop(x, g) if stop else None
        if reason is not None:
            return FlowResult(x, False, reason, field.n_evals, norm, t)
    return FlowResult(x, False, "t_max" if t >= t_max else "step too small", field.n_evals, norm, t)


class _Field:
    """The gradient with a count, and what the integrators derive from it."""

    def __init__(self, grad: Callable[[Vector], Vector], hess: Callable[[Vector], Tensor] | None) -> None:
        self._grad, self.hess, self.n_evals = grad, hess, 0

    def gradient(self, x: Vector) -> Vector:
        """Gradient at ``x``."""
        self.n_evals += 1
        return self._grad(x)

    def hessian_product(self, x: Vector, v: Vector) -> Vector:
        """Product of the Hessian at ``x`` with a unit vector, by a central difference of gradients."""
        h = torch.finfo(torch.float64).eps ** (1 / 3) * max(1.0, float(x.abs().max()))
        return (self.gradient(x + h * v) - self.gradient(x - h * v)) / (2 * h)


def _bdf(field: _Field, x: Vector, rtol: float, t_max: float) -> Iterator[State]:
    """Backward differentiation formulas of variable order and step."""

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        return -field.gradient(torch.from_numpy(y)).numpy()

    def jacobian(t: float, y: np.ndarray) -> np.ndarray:
        assert field.hess is not None
        return -field.hess(torch.from_numpy(y)).numpy()

    yield 0.0, x, field.gradient(x)
    jac = jacobian if field.hess else None
    solver = BDF(velocity, 0.0, x.numpy(), t_max, rtol=rtol, atol=1e-3 * rtol, jac=jac)
    while solver.status == "running":
        solver.step()
        if solver.status == "failed":
            return
        x = torch.from_numpy(solver.y.copy())
        yield float(solver.t), x, field.gradient(x)


def _rk45(field: _Field, x: Vector, rtol: float, t_max: float) -> Iterator[State]:
    """Dormand and Prince's pair of orders 4 and 5 with steps of at most 2 / curvature; it is stable up to 3.3."""
    device, count = x.device, 0

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        return -field.gradient(torch.from_numpy(y).to(device)).cpu().numpy()

    yield 0.0, x, field.gradient(x)
    v = torch.randn(len(x), dtype=x.dtype, generator=torch.Generator().manual_seed(0)).to(device)
    solver = RK45(velocity, 0.0, x.cpu().numpy(), t_max, rtol=max(rtol, _LEAST_RTOL), atol=1e-3 * rtol)
    while solver.status == "running":
        if count % 10 == 0:
            # Near rest errors are small and would let the step grow until it is not stable.
            curvature, v = _dominant_curvature(field, x, v, 20 if count == 0 else 3)
            solver.max_step = 2.0 / max(curvature, 1e-300)
        solver.step()
        if solver.status == "failed":
            return
        x, count = torch.from_numpy(solver.y.copy()).to(device), count + 1
        yield float(solver.t), x, torch.from_numpy(-solver.f).to(device)


def _dominant_curvature(field: _Field, x: Vector, v: Vector, products: int) -> tuple[float, Vector]:
    """Power iteration from ``v``; a guess from below, for which the step has a margin."""
    size = 0.0
    for _ in range(products):
        w = field.hessian_product(x, v / v.norm())
        size = float(w.norm())
        if size == 0.0:
            return 0.0, v
        v = w
    return size, v


_METHODS: dict[str, Callable[[_Field, Vector, float, float], Iterator[State]]] = {"bdf": _bdf, "rk45": _rk45}


def _check(w0: Tensor, method: str, positive: dict[str, float]) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {tuple(_METHODS)}, got {method!r}")
    if w0.ndim != 1 or len(w0) == 0:
        raise ValueError(f"w0 must be a flat vector of parameters, got shape {tuple(w0.shape)}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
