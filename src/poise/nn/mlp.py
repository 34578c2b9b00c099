"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn


def mlp(widths: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    """Return a multilayer perceptron; initial weights come from torch's global generator.

    Args:
        widths: sizes of the input, the hidden layers and the output, for example ``(64, 32, 10)``.
        activation: makes the nonlinearity between two layers; the output has none.
        bias: whether layers have biases.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def seeded_mlp(
    widths: Sequence[int], seed: int, activation: Callable[[], nn.Module] = nn.Tanh, bias: bool = True
) -> nn.Sequential:
    """Return :func:`mlp` with the initial weights of a seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(widths, activation, bias)
