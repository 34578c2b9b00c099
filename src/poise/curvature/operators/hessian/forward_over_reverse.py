"""Hessian products as the derivative of the gradient in one direction."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.operators.hessian.mode import HessianProduct


def forward_over_reverse(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v by forward over reverse differentiation: least memory of the exact modes, slow.

    Args:
        evaluation: the loss.
    """
    flat = evaluation.flat
    point = tuple(p.detach() for p in flat.tensors)

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for i in range(len(evaluation)):
            gradient = torch.func.grad(lambda parameters, i=i: evaluation.loss(i, parameters))
            along = torch.func.jvp(gradient, (point,), (tuple(flat.split(v)),))[1]
            total += flat.join(along)
        return total

    return product
