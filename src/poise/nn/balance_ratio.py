"""Balance of the weights of successive layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from poise.nn.diagonal_linear import DiagonalLinear
from poise.nn.path_norm import linear_layers


@torch.no_grad()
def balance_ratio(module: nn.Module) -> float:
    r"""Return how far the weights of successive layers are from balance: at least 1, and 1 at balance.

    Of a diagonal linear network with weights a and b it is :math:`\sum_j (a_j^2 + b_j^2) / (2 \sum_j |a_j b_j|)`; of
    one of depth D the arithmetic over the geometric mean of the D squares, each summed over j. Of a two-layer network
    a_j stands for the length of a unit's outgoing and b_j for that of its incoming weights. Gradient descent with a
    small learning rate keeps :math:`a_j^2 - b_j^2`; the noise of SGD drives the ratio towards 1.

    Args:
        module: a :class:`DiagonalLinear`, or an ``nn.Sequential`` of two ``nn.Linear`` layers with a positively
            homogeneous activation between them.

    Raises:
        TypeError: if ``module`` is something else.
        ValueError: if all weights are zero.

    References:
        Wu and Su, "The Implicit Regularization of Dynamical Stability in Stochastic Gradient Descent", ICML 2023,
        arXiv:2305.17490.
    """
    squares = _squares(module)
    mean = squares.mean(0).sum().item()
    geometric = squares.log().mean(0).exp().sum().item()
    if mean == 0:
        raise ValueError("module must have a weight that is not zero, got none")
    return max(1.0, mean / geometric) if geometric > 0 else math.inf


def _squares(module: nn.Module) -> Tensor:
    """Return the squared size of each factor of each unit, of shape (factors, units)."""
    if isinstance(module, DiagonalLinear):
        return module.weight.double().square()
    layers = linear_layers(module)
    if len(layers) != 2:
        raise TypeError(f"module must have two linear layers, got {len(layers)}")
    incoming = layers[0].weight.double().square().sum(1)
    if layers[0].bias is not None:
        incoming = incoming + layers[0].bias.double().square()
    return torch.stack([incoming, layers[1].weight.double().square().sum(0)])
