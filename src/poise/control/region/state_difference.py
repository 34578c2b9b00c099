"""Differences of states some of whose entries are angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def state_difference(
    x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"], angles: Sequence[int] = ()
) -> Float[Tensor, "*batch n"]:
    """Return x - y, the shorter way round in the entries that are angles.

    Args:
        x: states, of shape (..., n).
        y: states that broadcast to them.
        angles: indices of the entries that are angles in radians; pi and -pi are one angle.

    Raises:
        ValueError: if an index is out of range.

    Example:
        >>> import torch
        >>> state_difference(torch.tensor([math.pi, 1.0]), torch.tensor([-math.pi, 0.5]), angles=[0]).tolist()
        [0.0, 0.5]
    """
    difference = x - y
    n = difference.shape[-1]
    if any(not -n <= index < n for index in angles):
        raise ValueError(f"angles must be indices of a state of {n} entries, got {list(angles)}")
    if angles:
        difference = difference.clone()
        turned = difference[..., list(angles)]
        difference[..., list(angles)] = turned - 2 * math.pi * torch.round(turned / (2 * math.pi))
    return difference
