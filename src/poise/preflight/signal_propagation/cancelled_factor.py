"""Factors in front of a normalisation, which divides them out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 0.01  # relative difference of the outputs with and without the factor


@dataclass(frozen=True, slots=True)
class CancelledFactor:
    """A number that a tensor is multiplied by before a normalisation.

    Attributes:
        name: of the module that normalises.
        factor: the number.
    """

    name: str
    factor: float


def is_cancelled(normalise: Callable[[Tensor], Tensor], x: Tensor, factor: float) -> bool:
    """Whether a function puts out the same with and without a factor on its input.

    That of a batch norm in evaluation does not, nor does one whose epsilon is not small beside the input.

    Args:
        normalise: the function.
        x: its input, with the factor.
        factor: the factor; 1 and 0 are none.
    """
    if factor in (0.0, 1.0):
        return False
    given, plain = normalise(x), normalise(x / factor)
    size = torch.linalg.vector_norm(given)
    return bool(size > 0) and bool(torch.linalg.vector_norm(given - plain) <= _TOLERANCE * size)
