"""Random vectors that estimators of traces multiply an operator with."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.operators.linear_operator import LinearOperator

AT_ONCE = 8
"""Vectors held at a time by an estimator that needs no more."""


def gaussian(op: LinearOperator, m: int, generator: torch.Generator | None) -> Float[Tensor, "n m"]:
    """Return m standard normal columns."""
    device = op.device if generator is None else generator.device
    return torch.randn(op.shape[1], m, dtype=op.dtype, device=device, generator=generator).to(op.device)


def rademacher(op: LinearOperator, m: int, generator: torch.Generator | None) -> Iterator[Float[Tensor, "n b"]]:
    """Yield m columns of random signs, a few at a time."""
    device = op.device if generator is None else generator.device
    for first in range(0, m, AT_ONCE):
        shape = (op.shape[1], min(AT_ONCE, m - first))
        signs = torch.randint(0, 2, shape, device=device, generator=generator).to(op.device, op.dtype)
        yield signs * 2 - 1


def column_dots(u: Float[Tensor, "n m"], v: Float[Tensor, "n m"]) -> Float[Tensor, " m"]:
    """Return the scalar product of each pair of columns, accumulated in float64."""
    return (u * v).sum(0, dtype=torch.float64)


def standard_error(samples: Float[Tensor, " m"]) -> float:
    """Return the standard error of the mean of independent samples."""
    m = len(samples)
    return float(samples.std()) / math.sqrt(m) if m > 1 else math.inf
