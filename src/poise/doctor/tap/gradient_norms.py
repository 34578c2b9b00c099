"""The norms of an optimizer's gradients, in a few kernels for all of them."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from poise.doctor.shards import local_shard
from poise.doctor.tap.timeline import Timeline


def measure_gradients(timeline: Timeline, clip: tuple[Any, float] | None) -> None:
    """Note the norms of the gradients, each and in all, and what measuring them takes.

    Args:
        timeline: whose gradients.
        clip: norm before clipping and largest norm, where gradients were clipped: then the former is the norm.
    """
    start = time.perf_counter()
    gradients = [p.grad for p in timeline.parameters]
    timeline.with_gradient = there = [i for i, g in enumerate(gradients) if g is not None and not g.is_sparse]
    if not there:
        return
    norms = foreach_norm([local_shard(gradients[i]) for i in there])
    total = torch.linalg.vector_norm(torch.stack(norms))
    scale = getattr(timeline.optimizer, "grad_scale", None)  # set where a fused kernel is to unscale by itself
    if scale is not None:
        total = total / scale
    timeline.layer_norms, timeline.norm_now = norms, total
    norm = total if clip is None else clip[0]
    timeline.grad_norm = float(norm) if isinstance(norm, Tensor) and norm.is_cpu else norm
    timeline.note_norm_seconds(time.perf_counter() - start)


def foreach_norm(tensors: list[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor in float32, on the first one's device."""
    device = tensors[0].device
    if all(t.dtype == torch.float32 and t.device == device for t in tensors):
        return list(torch._foreach_norm(tensors))
    return [torch.linalg.vector_norm(t.detach(), dtype=_wide(t)).float().to(device) for t in tensors]


def _wide(tensor: Tensor) -> torch.dtype:
    if tensor.is_complex():
        return torch.complex128 if tensor.dtype == torch.complex128 else torch.complex64
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
