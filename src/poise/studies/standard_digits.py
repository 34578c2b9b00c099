"""Digits, standardised, as several studies train on them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from poise.data import load_digits, standardize


@cache
def standard_digits(seed: int, train: int = 1300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training pixels and classes, and those of the test; the training digits have mean 0 and variance 1.

    Args:
        seed: of the division.
        train: how many digits train.
    """
    data = load_digits()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    x, y = data.inputs[order], data.targets[order]
    inputs, held_out = standardize(x[:train], x[train:])
    return inputs, y[:train], held_out, y[train:]
