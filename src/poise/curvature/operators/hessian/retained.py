"""Hessian products from a graph of the gradient that is built once and kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.loss.flat import flatten
from poise.curvature.operators.hessian.mode import HessianProduct


def retained(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v that differentiates the kept gradient: one backward pass each, memory for all batches.

    Args:
        evaluation: the loss.
    """
    return differentiated_gradient(evaluation, range(len(evaluation)))


def differentiated_gradient(evaluation: Evaluation, batches: Iterable[int]) -> HessianProduct:
    """Return v -> H v for the part of the loss that some batches contribute.

    Args:
        evaluation: the loss.
        batches: their indices.

    Raises:
        TypeError: if the loss is no tensor.
        ValueError: if it is not a scalar, not finite or depends on no parameter.
        RuntimeError: if the gradient cannot be differentiated.
    """
    flat = evaluation.flat
    ends, slopes = zip(*(evaluation.output_and_gradient(i) for i in batches), strict=True)
    gradient = torch.autograd.grad(ends, flat.tensors, slopes, create_graph=True, allow_unused=True)
    curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    if not curved:
        return torch.zeros_like
    # One vector: autograd spends as long on checking many small outputs as on differentiating one.
    output = flatten([gradient[i] for i in curved])
    evaluation.check_twice_differentiable([output])

    everywhere = len(curved) == len(flat.tensors)

    def product(v: Tensor) -> Tensor:
        along = v if everywhere else flatten([flat.split(v)[i] for i in curved])
        return flat.join(torch.autograd.grad(output, flat.tensors, along, retain_graph=True, allow_unused=True))

    return product
