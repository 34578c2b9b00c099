"""Sharpness of the gradient-flow solution: how sharp the minimum is that gradient flow would reach from these weights.

Near the edge of stability neither loss nor sharpness falls steadily, but this does: a clean curve of progress.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.eigen.eigs import eigs
from poise.curvature.loss.batches import as_batches, map_tensors
from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.objective import Supervised
from poise.curvature.operators.hessian.hessian import Hessian
from poise.dynamics.gradient_flow.gradient_flow_limit import FlowResult, Method, gradient_flow_limit

Vector = Float[Tensor, " parameters"]

CROSS_ENTROPY_FLOOR = 1e-3
"""Loss at which the flow of a cross entropy is cut off: on separable data it has no minimum."""

LARGEST_FACTORED = 500
"""Number of parameters up to which the implicit integrator, which factors the Hessian, is the default."""


@dataclass(frozen=True, slots=True)
class GradientFlowSolution:
    """Where gradient flow ends for a model, and how sharp the loss is there.

    Args:
        sharpness: largest eigenvalue of the Hessian at the end of the flow.
        error_bound: of the sharpness as an eigenvalue; the flow's own error comes on top.
        flow: the end of the flow; its ``x`` holds the parameters, flat, in float64.
        loss: loss at the end of the flow.
        vector: the eigenvector; a good first guess for the next solution.
    """

    sharpness: float
    error_bound: float
    flow: FlowResult
    loss: float
    vector: Vector

    @property
    def converged(self) -> bool:
        """Whether the flow came to rest."""
        return self.flow.converged


def gradient_flow_solution(
    model: nn.Module,
    data: Any,
    *,
    loss: Any,
    params: Sequence[str] | None = None,
    method: Method | None = None,
    tol: float = 1e-8,
    t_max: float = 1e6,
    max_evals: int = 20000,
    max_seconds: float | None = None,
    v0: Vector | None = None,
) -> GradientFlowSolution:
    """Follow gradient flow from the model's weights and measure the sharpness where it ends.

    All is computed in float64 on a copy; the model is not touched. Meant for full-batch gradient descent: with momentum
    or mini-batches the sharpness of the solution is a diagnostic, not known to fall. The flow of a ReLU network is
    only piecewise smooth, which costs steps.

    Args:
        model: network, in the mode wanted.
        data: a batch or an iterable of batches; the loss is the mean over all examples.
        loss: a criterion, or any ``loss(model, batch)`` that returns a mean.
        params: names of parameters or modules that move; by default all that require gradients.
        method: integrator, see :func:`gradient_flow_limit`; by default ``"bdf"`` for up to 500 parameters, else
            ``"rk45"``.
        tol: norm of the gradient at which the flow counts as at rest.
        t_max: time at which to give up.
        max_evals: number of gradients at which to give up.
        max_seconds: wall-clock time after which to give up; by default none, since it makes results depend on the
            machine.
        v0: first guess of the eigenvector, for example the last solution's.

    Returns:
        The solution. Where the flow did not come to rest, its ``flow`` has the reason: a cross entropy is cut off at a
        loss of 1e-3.

    Raises:
        ValueError: if the loss is not finite or not a scalar, and as :func:`gradient_flow_limit`.

    References:
        Kreisler et al. (2023). Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions in
        Scalar Networks and Beyond. arXiv:2305.13064
    """
    double = copy.deepcopy(model).double()
    batches = [map_tensors(_double, batch) for batch in as_batches(data)]
    system = _LossOfVector(Evaluation(double, loss, batches, params))
    start = system.evaluation.flat.vector()
    flow = gradient_flow_limit(
        system.gradient,
        start,
        hess=system.hessian,
        method=method or ("bdf" if len(start) <= LARGEST_FACTORED else "rk45"),
        tol=tol,
        t_max=t_max,
        max_evals=max_evals,
        stop=_stop(system, max_seconds),
    )
    with torch.no_grad():
        for parameter, value in zip(system.evaluation.flat.tensors, system.evaluation.flat.split(flow.x), strict=True):
            parameter.copy_(value)
    # Seeded, so that the caller's random state is left alone and the same weights give the same number.
    generator = torch.Generator(start.device).manual_seed(0)
    top = eigs(Hessian(double, loss, batches, params), k=1, which="LA", tol=1e-6, v0=v0, generator=generator)
    end = float(system.loss(flow.x))
    return GradientFlowSolution(float(top.values[0]), float(top.error_bounds[0]), flow, end, top.vectors[:, 0])


def gfs_sharpness(model: nn.Module, data: Any, *, loss: Any, **options: Any) -> float:
    """Return the sharpness of the gradient-flow solution.

    Args:
        model: network.
        data: a batch or an iterable of batches.
        loss: a criterion, or any ``loss(model, batch)`` that returns a mean.
        options: of :func:`gradient_flow_solution`.

    Warns:
        UserWarning: if the flow did not come to rest; the number is then that of the last point.

    Raises:
        ValueError: as :func:`gradient_flow_solution`.

    References:
        Kreisler et al. (2023). arXiv:2305.13064
    """
    solution = gradient_flow_solution(model, data, loss=loss, **options)
    if not solution.converged:
        warnings.warn(
            f"the gradient flow did not come to rest ({solution.flow.reason}; gradient norm "
            f"{solution.flow.grad_norm:.2g} at t = {solution.flow.t:.4g}): the sharpness is that of the point reached",
            stacklevel=2,
        )
    return solution.sharpness


class _LossOfVector:
    """Loss, gradient and Hessian as functions of the flat parameters."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def loss(self, w: Vector) -> Tensor:
        """Mean loss over all batches."""
        parts = self.evaluation.flat.split(w)
        return torch.stack([self.evaluation.loss(i, parts) for i in range(len(self.evaluation))]).sum()

    def gradient(self, w: Vector) -> Vector:
        """Its gradient, batch by batch, so that one graph is in memory at a time."""
        w = w.detach().requires_grad_()
        total = torch.zeros_like(w)
        for i in range(len(self.evaluation)):
            loss = self.evaluation.loss(i, self.evaluation.flat.split(w))
            total += torch.autograd.grad(loss, w)[0]
        return total.detach()

    def hessian(self, w: Vector) -> Float[Tensor, "parameters parameters"]:
        """Its Hessian, dense."""
        w = w.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(w), w, create_graph=True)
        eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
        return torch.autograd.grad(gradient, w, eye, is_grads_batched=True)[0].detach()


def _stop(system: _LossOfVector, max_seconds: float | None) -> Callable[[Vector, Vector], str | None]:
    objective = system.evaluation.objective
    without_minimum = isinstance(objective, Supervised) and objective.curvature == "ce"
    deadline = None if max_seconds is None else time.monotonic() + max_seconds

    def stop(w: Vector, gradient: Vector) -> str | None:
        if deadline is not None and time.monotonic() > deadline:
            return f"{max_seconds:g} seconds are over"
        if without_minimum and float(system.loss(w)) < CROSS_ENTROPY_FLOOR:
            return f"truncated at a loss of {CROSS_ENTROPY_FLOOR:g}: the cross entropy may have no minimum"
        return None

    return stop


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
