"""Many tensors as one flat vector, so that a statistic of each takes a few operations in all, not a few for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.doctor.shards import local_shard

_ELEMENTS = 1 << 11  # per tensor: of a larger one, this many of its coordinates suffice


class Segments:
    """Reduces a flat vector by the tensors it was made of; :func:`segments_of` makes one.

    Args:
        sizes: numbers of elements of the tensors.
        device: where they are.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._strides = [_stride(size) for size in sizes]
        self.sizes = [len(range(0, size, stride)) for size, stride in zip(sizes, self._strides, strict=True)]
        self.lengths = torch.tensor(self.sizes, device=device)
        self._counts = self.lengths.clamp_min(1)
        self._enlarge = (torch.tensor(sizes, device=device) / self._counts).sqrt()

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " element"]:
        """Copy (samples of) the tensors into one float32 vector."""
        samples = [_every(stride, local_shard(t)) for t, stride in zip(tensors, self._strides, strict=True)]
        return torch.cat(samples).float()

    def sum(self, values: Float[Tensor, " element"]) -> Float[Tensor, " segment"]:
        """Sum each tensor's part."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths, unsafe=True)

    def mean(self, values: Float[Tensor, " element"]) -> Float[Tensor, " segment"]:
        """Average each tensor's part; 0 for an empty tensor."""
        return self.sum(values) / self._counts

    def norm(self, values: Float[Tensor, " element"]) -> Float[Tensor, " segment"]:
        """Return the 2-norm of each tensor, estimated from its part."""
        return self.sum(values.square()).sqrt() * self._enlarge

    def spread(self, values: Sequence[Any]) -> float | Float[Tensor, " element"]:
        """Repeat each tensor's own number over its part; one number if all are equal."""
        if all(not isinstance(v, Tensor) for v in values) and len(set(values)) == 1:
            return float(values[0])
        device = self.lengths.device
        stacked = torch.stack([torch.as_tensor(v, dtype=torch.float32, device=device).reshape(()) for v in values])
        return torch.repeat_interleave(stacked, self.lengths, output_size=sum(self.sizes))


def segments_of(tensors: Sequence[Tensor]) -> Segments:
    """Return what reduces the samples of ``tensors``."""
    return _segments(tuple(local_shard(t).numel() for t in tensors), tensors[0].device)


_segments = functools.lru_cache(maxsize=16)(Segments)  # a model's tensors keep their sizes


def sample(tensor: Any) -> Float[Tensor, " element"]:
    """Return evenly spread coordinates of this process's part of ``tensor``: all of a small one, else about 2000."""
    tensor = local_shard(tensor)
    return _every(_stride(tensor.numel()), tensor)


def _every(stride: int, tensor: Tensor) -> Float[Tensor, " element"]:
    if stride == 1:
        return tensor.reshape(-1)
    if tensor.is_contiguous():  # the same as below, in one operation
        return tensor.as_strided((-(-tensor.numel() // stride),), (stride,), tensor.storage_offset())
    return tensor.reshape(-1)[::stride]


def _stride(numel: int) -> int:
    # Odd: prime to widths that are powers of two, so that it reaches every column.
    return -(-numel // _ELEMENTS) | 1 if numel > _ELEMENTS else 1
