"""Small networks that several studies train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn


def relu_net(
    widths: Sequence[int], seed: int, norm_eps: float | None = None, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Return a ReLU network whose initial weights need no global generator.

    Weights and biases are uniform as those of ``torch.nn.Linear``, but drawn input by input.

    Args:
        widths: sizes of the input, the hidden layers and the output.
        seed: of the initial weights.
        norm_eps: epsilon of a batch norm behind each hidden layer, which then has no bias; ``None`` for none.
        dtype: of the parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        hidden = i < len(widths) - 2
        weight, bias = (
            (2 * torch.rand(rows, fan_out, generator=generator, dtype=dtype) - 1) / fan_in**0.5 for rows in (fan_in, 1)
        )
        has_bias = norm_eps is None or not hidden
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=has_bias, dtype=dtype)
        linear.weight = nn.Parameter(
            weight.mT
        )  # keeps the layout input by input, in which products are a little faster
        if has_bias:
            linear.bias.data.copy_(bias[0])
        layers.append(linear)
        if hidden:
            layers += [nn.BatchNorm1d(fan_out, eps=norm_eps, dtype=dtype)] if norm_eps is not None else []
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
