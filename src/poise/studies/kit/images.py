"""Small images of ten classes for the studies of continual learning: Fashion-MNIST where it is installed."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from poise.data import has_fashion_mnist, load_digits, load_fashion_mnist
from poise.studies.kit.claims import Measured

FASHION = "Fashion-MNIST"


class Images(NamedTuple):
    """Images in [0, 1] and their classes.

    Args:
        name: of the data set.
        train: inputs of shape (samples, pixels) and class numbers.
        test: the same, held out.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def pixels(self) -> int:
        """Columns of the inputs."""
        return self.train[0].shape[1]


@cache
def images(train: int, test: int) -> Images:
    """Return the first images of Fashion-MNIST; scikit-learn's digits in their place where it is not installed.

    Args:
        train: training images; of the digits there are at most 1300.
        test: held-out images; of the digits there are at most 497.
    """
    if has_fashion_mnist():
        parts = [load_fashion_mnist("train", train), load_fashion_mnist("test", test)]
        return Images(FASHION, *((part.inputs / 255, part.targets) for part in parts))
    digits = load_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    x, y = digits.inputs[order] / 16, digits.targets[order]
    held_out = slice(1300, 1300 + test)
    return Images("scikit-learn's digits", (x[:train][:1300], y[:train][:1300]), (x[held_out], y[held_out]))


def on_fashion(name: str, measured: Measured) -> Measured:
    """Return what was measured, without its numbers where the data are not those for which the thresholds were set.

    Args:
        name: of the data set.
        measured: for a claim.
    """
    if name == FASHION:
        return measured
    return Measured(f"{measured.text} (on {name}: the claim's thresholds hold for {FASHION} only)")
