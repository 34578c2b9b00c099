"""One call of a loss function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_FIRST = 8


@dataclass(frozen=True, slots=True)
class LossCall:
    """One call of a loss function in training.

    Args:
        function: name of the function in ``torch.nn.functional``.
        input: its first argument, with its graph.
        target: its second argument.
        options: all of its arguments by name.
    """

    function: str
    input: Tensor
    target: Tensor
    options: Mapping[str, Any]


def is_examined(count: int) -> bool:
    """Return whether the ``count``-th call is examined: the first 8, then ever rarer ones, whatever is sampled."""
    return count <= _FIRST or count & (count - 1) == 0
