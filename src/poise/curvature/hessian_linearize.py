"""Hessian products from the gradient's linearisation, traced once."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.curvature.evaluation import Evaluation
from poise.curvature.hessian_mode import HessianProduct


def linearize(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v that replays a trace: dear to build, cheapest per product, memory for all batches.

    Args:
        evaluation: the loss.
    """
    flat = evaluation.flat

    def loss(*parameters: Tensor) -> Tensor:
        return torch.stack([evaluation.loss(i, parameters) for i in range(len(evaluation))]).sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(len(flat.tensors))))
    _, along = torch.func.linearize(gradient, *(p.detach() for p in flat.tensors))

    def product(v: Tensor) -> Tensor:
        return flat.join(along(*flat.split(v)))

    return product
