"""How fast the neural tangent kernel sharpens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poise.curvature.eigen.eigs import eigs
from poise.curvature.loss.evaluation import Evaluation, PlainAttentionFallback
from poise.curvature.loss.objective import as_supervised
from poise.curvature.operators.ntk import NTK


def sharpening_rate(
    model: nn.Module,
    data: Any,
    objective: Any = F.mse_loss,
    direction: str | Float[Tensor, " P"] = "gd",
    params: Sequence[str] | None = None,
    tol: float = 1e-6,
    generator: torch.Generator | None = None,
) -> float:
    r"""Return the derivative of the NTK's largest eigenvalue as the parameters move.

    With v the top eigenvector of :math:`J J^\top` and :math:`w = J^\top v`, the eigenvalue is :math:`|w|^2` and its
    derivative in a direction :math:`\delta`

    .. math:: 2\, w^\top \nabla^2 (v \cdot f)\, \delta,

    one Hessian product. Gradient flow on :math:`\frac12 |z|^2`, the squared residuals :math:`z = f - y` *summed* over
    outputs and examples, has :math:`\delta = -J^\top z`: the second-order term
    :math:`-2\, v \cdot Q(J^\top z, J^\top v)` of a quadratic regression model. A mean over N examples is N times
    slower.

    Args:
        model: float32 or float64.
        data: a batch or an iterable of batches.
        objective: defines inputs, outputs and targets, see :class:`poise.curvature.Supervised`.
        direction: ``"gd"``, or a flat vector.
        params: names of parameters or of modules; by default all that require gradients.
        tol: relative tolerance of the eigenvalue; the rate is right to about its root.
        generator: of the eigenvalue's start vector.

    Raises:
        ValueError: if ``direction`` is neither ``"gd"`` nor a vector of the parameters' length.

    References:
        Agarwala, Pedregosa and Pennington, ICML 2023, arXiv:2210.04860.
    """
    if isinstance(direction, str) and direction != "gd":
        raise ValueError(f"direction must be 'gd' or a flat vector, got {direction!r}")
    kernel = NTK(model, data, objective, params)
    v = eigs(kernel, k=1, which="LA", tol=tol, generator=generator).vectors[:, 0]
    evaluation = Evaluation(model, as_supervised(objective, "sharpening_rate"), data, params)
    weights = kernel.split(v)
    if isinstance(direction, Tensor) and direction.shape != (evaluation.flat.numel,):
        raise ValueError(f"direction must have shape ({evaluation.flat.numel},), got {tuple(direction.shape)}")

    with evaluation.measuring():
        along = direction if isinstance(direction, Tensor) else -_pulled(evaluation, _residuals(evaluation))
        w = _pulled(evaluation, weights)
    curved = PlainAttentionFallback(lambda: _curved, evaluation).use(lambda hvp: hvp(evaluation, weights, along))
    return 2.0 * float(torch.dot(w, curved))


def _residuals(evaluation: Evaluation) -> list[Tensor]:
    """The outputs minus the targets, per batch."""
    residuals = []
    for i in range(len(evaluation)):
        outputs, targets = evaluation.outputs(i).detach(), evaluation.supervised.targets(evaluation.batch(i))
        if outputs.shape != targets.shape:
            raise ValueError(
                f"direction 'gd' is that of the squared error: targets must have the outputs' shape "
                f"{tuple(outputs.shape)}, got {tuple(targets.shape)}"
            )
        residuals.append(outputs - targets)
    return residuals


def _pulled(evaluation: Evaluation, weights: Sequence[Tensor]) -> Float[Tensor, " P"]:
    """J^T u for weights u per batch."""
    flat = evaluation.flat
    total = torch.zeros(flat.numel, dtype=flat.dtype, device=flat.device)
    for i, u in enumerate(weights):
        total += flat.join(torch.autograd.grad(evaluation.outputs(i), flat.tensors, u, allow_unused=True))
    return total


def _curved(evaluation: Evaluation, weights: Sequence[Tensor], along: Tensor) -> Float[Tensor, " P"]:
    """The Hessian of u . f times a vector."""
    flat = evaluation.flat
    parts = flat.split(along)
    total = torch.zeros_like(along)
    for i, u in enumerate(weights):
        outputs = evaluation.outputs(i)
        gradient = torch.autograd.grad(outputs, flat.tensors, u, create_graph=True, allow_unused=True)
        curved = [(g, part) for g, part in zip(gradient, parts, strict=True) if g is not None and g.requires_grad]
        if curved:
            rows, vectors = zip(*curved, strict=True)
            total += flat.join(torch.autograd.grad(rows, flat.tensors, vectors, allow_unused=True))
    return total
