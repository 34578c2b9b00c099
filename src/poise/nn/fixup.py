"""Fixup: initialise a residual network so that it needs no normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def fixup_(
    branches: Sequence[Sequence[nn.Module]],
    classifier: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> None:
    r"""Initialise the weights of residual branches by Fixup, in place.

    In each of L branches with m layers of weights the last is zero and the others are He-normal times
    :math:`L^{-1/(2m-2)}`; the classifier is zero. The scalar biases and the multiplier that belong to Fixup are the
    model's to have; a learnable :class:`ScaledResidual` with scale 1 is the multiplier.

    Args:
        branches: the layers with weights of each branch, in order.
        classifier: the last layer.
        generator: of random numbers, torch's by default.

    Raises:
        ValueError: if there is no branch, or a branch has no layer.

    References:
        Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019,
        arXiv:1901.09321.

    Example:
        >>> branch = [nn.Linear(8, 8), nn.Linear(8, 8)]
        >>> fixup_([branch])
        >>> float(branch[-1].weight.abs().max())
        0.0
    """
    if not branches or not all(branches):
        raise ValueError(f"branches must hold at least one layer each, got {[len(branch) for branch in branches]}")
    for branch in branches:
        *inner, last = branch
        for layer in inner:
            weight = _weight(layer)
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            weight.mul_(len(branches) ** (-1 / (2 * len(branch) - 2)))
        _weight(last).zero_()
    for layer in [layer for branch in branches for layer in branch] + ([classifier] if classifier is not None else []):
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias.zero_()
    if classifier is not None:
        _weight(classifier).zero_()


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")
