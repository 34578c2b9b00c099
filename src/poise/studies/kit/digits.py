"""Handwritten digits, divided and scaled as the studies train on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from poise.data import load_digits, standardize

Scale = Literal["standardised", "unit", "centred"]


class Digits(NamedTuple):
    """Digits that train, and those of the test; with a leading axis ``seeds`` from :func:`digits_by_seed`."""

    x: Float[Tensor, "*seeds train 64"]
    y: Int64[Tensor, "*seeds train"]
    x_test: Float[Tensor, "*seeds test 64"]
    y_test: Int64[Tensor, "*seeds test"]


@cache
def digits(
    seed: int | None = None, train: int = 1300, scale: Scale = "standardised", label_noise: float = 0.0
) -> Digits:
    """Return the 1797 digits, the first ``train`` of which train.

    Args:
        seed: of the order; ``None`` keeps that of the data set.
        train: how many train.
        scale: ``"standardised"``, so that each pixel of the training digits has mean 0 and variance 1; ``"unit"``, in
            [0, 1]; or ``"centred"``, that less the mean training digit.
        label_noise: fraction of the training digits that get a random label, in [0, 1]; needs a seed.

    Raises:
        ValueError: if ``train`` is outside [2, 1797], ``label_noise`` is outside [0, 1] or has no seed, or ``scale`` is
            unknown.
    """
    data = load_digits()
    if not 2 <= train <= len(data):
        raise ValueError(f"train must lie in [2, {len(data)}], got {train}")
    if not 0 <= label_noise <= 1 or (label_noise and seed is None):
        raise ValueError(f"label_noise must lie in [0, 1], and above 0 it needs a seed; got {label_noise}, {seed=}")
    generator = torch.Generator()
    order = (
        torch.arange(len(data)) if seed is None else torch.randperm(len(data), generator=generator.manual_seed(seed))
    )
    x, labels = data.inputs[order], data.targets[order]
    if scale == "standardised":
        inputs, held_out = standardize(x[:train], x[train:])
    elif scale in ("unit", "centred"):
        inputs, held_out = x[:train] / 16, x[train:] / 16
        if scale == "centred":
            mean = inputs.mean(0)
            inputs, held_out = inputs - mean, held_out - mean
    else:
        raise ValueError(f"scale must be 'standardised', 'unit' or 'centred', got {scale!r}")
    y = labels[:train].clone()
    if label_noise:
        noisy = torch.randperm(train, generator=generator)[: round(label_noise * train)]
        y[noisy] = torch.randint(10, (len(noisy),), generator=generator)
    return Digits(inputs, y, held_out, labels[train:])


def digits_by_seed(
    seeds: Sequence[int], train: int = 1300, scale: Scale = "standardised", label_noise: float = 0.0
) -> Digits:
    """Return the digits of several seeds, stacked; arguments as of :func:`digits`."""
    divisions = [digits(seed, train, scale, label_noise) for seed in seeds]
    return Digits(*(torch.stack(parts) for parts in zip(*divisions, strict=True)))
