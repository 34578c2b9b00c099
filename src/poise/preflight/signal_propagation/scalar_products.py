"""Which tensors of a computation are another tensor times a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TIMES = (torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
_OVER = (torch.div, torch.true_divide, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__)
FUNCTIONS = frozenset(_TIMES + _OVER)
"""Functions of torch that multiply or divide."""


@dataclass(frozen=True, slots=True)
class ScalarProduct:
    """A tensor times a number.

    Attributes:
        source: the tensor's node in autograd's graph.
        factor: the number.
    """

    source: Any
    factor: float


class ScalarProducts:
    """The products with numbers that were met in a forward pass."""

    def __init__(self) -> None:
        self._found: dict[Any, ScalarProduct] = {}

    def read(self, func: Any, args: tuple[Any, ...]) -> ScalarProduct | None:
        """Return the product that a call is about to make (then an operand may be overwritten).

        Args:
            func: one of :data:`FUNCTIONS`.
            args: its positional arguments.
        """
        if len(args) != 2:
            return None
        tensor, other = args
        if func in _TIMES and _number(other) is None:
            tensor, other = other, tensor
        number = _number(other)
        if number is None or not isinstance(tensor, Tensor) or tensor.numel() == 1 or tensor.grad_fn is None:
            return None
        if func in _TIMES:
            return ScalarProduct(tensor.grad_fn, number)
        return ScalarProduct(tensor.grad_fn, 1 / number) if number else None

    def keep(self, product: ScalarProduct, output: Any) -> None:
        """Write a product down.

        Args:
            product: as it was read before the call.
            output: of the call.
        """
        if isinstance(output, Tensor) and output.grad_fn is not None:
            self._found[output.grad_fn] = product

    def of(self, tensor: Tensor) -> ScalarProduct | None:
        """Return the product that a tensor is, ``None`` if it is none."""
        return self._found.get(tensor.grad_fn)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
