"""Hessian products as a difference of two gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.operators.hessian.mode import HessianProduct


def finite_difference(evaluation: Evaluation) -> HessianProduct:
    r"""Return v -> H v by a central difference, for models without a second derivative.

    .. math:: H v \approx \frac{g(\theta + h v) - g(\theta - h v)}{2 h}, \qquad
        h = \epsilon^{1/3} \max(1, |\theta|) / |v|

    Args:
        evaluation: the loss.
    """
    flat = evaluation.flat
    point = flat.vector()
    reach = torch.finfo(flat.dtype).eps ** (1 / 3) * point.norm().clamp(min=1.0)

    def gradient(theta: Tensor) -> Tensor:
        parameters = [p.requires_grad_() for p in flat.split(theta)]
        total = torch.zeros_like(theta)
        for i in range(len(evaluation)):
            loss = evaluation.loss(i, parameters)
            total += flat.join(torch.autograd.grad(loss, parameters, allow_unused=True))
        return total

    def product(v: Tensor) -> Tensor:
        length = v.norm()
        step = torch.where(length > 0, reach / length, 0.0)
        difference = gradient(point + step * v) - gradient(point - step * v)
        return torch.where(length > 0, difference / (2 * step), 0.0)

    return product
