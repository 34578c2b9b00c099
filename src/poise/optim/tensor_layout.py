"""The layout of a parameter in an optimizer that works per axis: merged axes, preconditioned axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

DataFormat = Literal["channels_first", "channels_last"]


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """A parameter's shape inside the optimizer.

    Args:
        shape: the parameter's shape after its axes were merged.
        axes: axes of that shape that get a basis.
        channels_last: whether the last of four axes goes to the second place first.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    channels_last: bool = False

    def view(self, x: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape in this layout."""
        if x.shape == self.shape:
            return x
        return (x.permute(0, 3, 1, 2) if self.channels_last else x).reshape(self.shape)

    def restore(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a tensor of this layout in the parameter's ``shape``."""
        if not self.channels_last:
            return x if x.shape == shape else x.reshape(tuple(shape))
        a, b, c, channels = shape
        return x.reshape(a, channels, b, c).permute(0, 2, 3, 1)


@lru_cache(maxsize=4096)
def tensor_layout(
    shape: tuple[int, ...],
    max_precond_dim: int,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    one_sided: bool = False,
    data_format: DataFormat = "channels_first",
) -> TensorLayout:
    """Return the layout of a parameter.

    Args:
        shape: the parameter's shape.
        max_precond_dim: longest axis that gets a basis.
        merge_dims: multiply neighbouring axes as long as their product is at most ``max_precond_dim``.
        precondition_1d: give vectors a basis too.
        one_sided: give only the shorter axis of a matrix a basis.
        data_format: ``"channels_last"`` if the channels of four axes are the last one; counts for merging only.
    """
    channels_last = merge_dims and data_format == "channels_last" and len(shape) == 4
    ordered = (shape[0], shape[3], shape[1], shape[2]) if channels_last else shape
    merged = merged_shape(ordered, max_precond_dim) if merge_dims and len(shape) > 1 else shape
    # An axis of length one has nothing to rotate.
    axes = tuple(i for i, n in enumerate(merged) if 1 < n <= max_precond_dim)
    if len(shape) == 1 and not precondition_1d:
        axes = ()
    if one_sided and len(merged) == 2:
        shorter = 0 if merged[0] <= merged[1] else 1
        axes = tuple(i for i in axes if i == shorter)
    return TensorLayout(tuple(merged), axes, channels_last)


def merged_shape(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Multiply neighbouring axes, from the left, as long as the product does not exceed ``limit``.

    Example:
        >>> merged_shape((4, 3, 2, 2), 4), merged_shape((4, 3, 2, 2), 12)
        ((4, 3, 4), (12, 4))
    """
    merged: list[int] = []
    product = 1
    for n in shape:
        if product * n <= limit:
            product *= n
        elif product > 1:
            merged.append(product)
            product = n
        else:
            merged.append(n)
    if product > 1 or not merged:
        merged.append(product)
    return tuple(merged)
