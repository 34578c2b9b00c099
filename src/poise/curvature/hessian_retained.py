"""Hessian products from a graph of the gradient that is built once and kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from poise.curvature.evaluation import Evaluation
from poise.curvature.hessian_mode import HessianProduct


def retained(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v that differentiates the kept gradient: one backward pass each, memory for all batches.

    Args:
        evaluation: the loss.
    """
    return differentiated_gradient(evaluation, range(len(evaluation)))


def differentiated_gradient(evaluation: Evaluation, batches: Iterable[int]) -> HessianProduct:
    """Return v -> H v for the part of the loss that some batches contribute."""
    flat = evaluation.flat
    loss = torch.stack([evaluation.checked_loss(i) for i in batches]).sum()
    gradient = torch.autograd.grad(loss, flat.tensors, create_graph=True, allow_unused=True)
    curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
    outputs = [gradient[i] for i in curved]
    evaluation.check_twice_differentiable(outputs)

    def product(v: Tensor) -> Tensor:
        if not curved:
            return torch.zeros_like(v)
        parts = flat.split(v)
        along = [parts[i] for i in curved]
        return flat.join(torch.autograd.grad(outputs, flat.tensors, along, retain_graph=True, allow_unused=True))

    return product
