"""The fully connected residual network of the Stable ResNet theory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.nn.scaled_residual import Kind, ScaledResidual, residual_scales


class _Branch(nn.Module):
    """W phi(y) with normal weights of variance sigma_w2 / n."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor], sigma_w2: float) -> None:
        super().__init__()
        self.activation, self.linear = activation, nn.Linear(width, width)
        self.sigma_w2 = sigma_w2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _draw(self.linear, self.sigma_w2)

    def forward(self, y: Tensor) -> Tensor:
        return self.linear(self.activation(y))


def _draw(linear: nn.Linear, sigma_w2: float) -> None:
    nn.init.normal_(linear.weight, std=math.sqrt(sigma_w2 / linear.in_features))
    nn.init.zeros_(linear.bias)


class StableResNetMLP(nn.Module):
    r"""Residual network without normalisation whose branches carry the factors of :func:`residual_scales`.

    .. math:: y_0 = W_0 x, \qquad y_l = y_{l-1} + \lambda_{l,L} W_l \phi(y_{l-1}), \qquad f = W_{out} \phi(y_L)

    Weights are normal with variance ``sigma_w2 / fan_in``, biases zero.

    Args:
        in_features: size of the input.
        width: size of the stream.
        depth: number of residual branches.
        out_features: size of the output.
        kind: of the factors; ``"standard"`` is the ordinary network, whose variance doubles with every branch.
        activation: of the branches and before the output.
        sigma_w2: 2 is He's.

    Raises:
        ValueError: if a size or ``sigma_w2`` is out of range, or ``kind`` is unknown.

    References:
        Hayou et al., "Stable ResNet", AISTATS 2021, arXiv:2010.12859.

    Example:
        >>> StableResNetMLP(64, 32, depth=50, out_features=10)(torch.randn(4, 64)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        kind: Kind | Callable[[int, int], float] = "uniform",
        activation: Callable[[Tensor], Tensor] = torch.relu,
        sigma_w2: float = 2.0,
    ) -> None:
        if min(in_features, width, depth, out_features) < 1:
            raise ValueError(f"sizes must be at least 1, got {(in_features, width, depth, out_features)}")
        if not sigma_w2 > 0:
            raise ValueError(f"sigma_w2 must be positive, got {sigma_w2!r}")
        super().__init__()
        self.activation = activation
        scales = residual_scales(depth, kind).tolist()
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.Sequential(*(ScaledResidual(_Branch(width, activation, sigma_w2), s) for s in scales))
        self.last = nn.Linear(width, out_features)
        self.sigma_w2 = sigma_w2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first and the last layer; the blocks draw theirs."""
        _draw(self.first, self.sigma_w2)
        _draw(self.last, self.sigma_w2)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the output before any loss."""
        out: Tensor = self.last(self.activation(self.blocks(self.first(x))))
        return out
