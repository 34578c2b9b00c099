"""Hessian products by two backward passes, batch after batch."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.operators.hessian.mode import HessianProduct
from poise.curvature.operators.hessian.retained import differentiated_gradient


def rebuild(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v that builds the graph of one batch at a time: memory for one batch, a gradient more per product.

    Args:
        evaluation: the loss.
    """

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for i in range(len(evaluation)):
            total += differentiated_gradient(evaluation, [i])(v)
        return total

    return product
