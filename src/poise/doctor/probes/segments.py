"""Many tensors as one flat vector, so that a statistic of each takes a few operations in all, not a few for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.doctor.shards import local_shard

_ELEMENTS = 1 << 12  # per tensor: of a larger one, evenly spread rows and columns tell enough


class Segments:
    """Reduces a flat vector by the tensors it was made of.

    Args:
        tensors: the tensors; only their sampled sizes and their device are kept.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.sizes = [sample(t).numel() for t in tensors]
        self.lengths = torch.tensor(self.sizes, device=tensors[0].device)
        whole = torch.tensor([t.numel() for t in tensors], device=tensors[0].device)
        self._enlarge = (whole / self.lengths.clamp_min(1)).sqrt()

    def flatten(self, tensors: Sequence[Tensor]) -> Float[Tensor, " element"]:
        """Copy (samples of) the tensors into one float32 vector."""
        return torch.cat([sample(t).reshape(-1).to(torch.float32) for t in tensors])

    def sum(self, values: Float[Tensor, " element"]) -> Float[Tensor, " segment"]:
        """Sum each tensor's part."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths, unsafe=True)

    def mean(self, values: Float[Tensor, " element"]) -> Float[Tensor, " segment"]:
        """Average each tensor's part; 0 for an empty tensor."""
        return self.sum(values) / self.lengths.clamp_min(1)

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


def sample(tensor: Any) -> Tensor:
    """Return this process's part of ``tensor``, or if that is large a view of evenly spread rows and columns."""
    tensor = local_shard(tensor).detach()
    if tensor.numel() <= _ELEMENTS or tensor.dim() == 0:
        return tensor
    tensor = tensor[:: min(tensor.shape[0], -(-tensor.numel() // _ELEMENTS))]
    if tensor.numel() > _ELEMENTS and tensor.dim() > 1:
        tensor = tensor[..., :: min(tensor.shape[-1], -(-tensor.numel() // _ELEMENTS))]
    return tensor
