"""Attention logits of one sample, which a fused kernel does not return."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_HEADS, _QUERIES = 8, 128  # one sample's first heads and last queries suffice, at a bounded cost
_MASKED = -1e4  # what hand-written masks add, or put in, where a key may not be seen


def scaled_dot_product_logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> tuple[Float[Tensor, "heads query key"], Bool[Tensor, "#heads query key"] | None]:
    """Return the logits that ``scaled_dot_product_attention`` would use, and which of them it would see."""
    q, k = _one_sample(query.detach()), _one_sample(key.detach())
    if q.shape[0] != k.shape[0]:  # grouped queries: each key head serves several
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    heads, first = min(q.shape[0], _HEADS), max(0, q.shape[-2] - _QUERIES)
    q, k = q[:heads, first:].float(), k[:heads].float()
    logits = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    visible = None
    if is_causal:
        full = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=q.device).tril()
        visible = full[first:].unsqueeze(0)
    if attn_mask is not None:
        mask = _one_sample(attn_mask.detach())[:heads]
        mask = mask[..., first:, :] if mask.shape[-2] == query.shape[-2] else mask
        if mask.dtype != torch.bool:
            logits = logits + mask.float()
            mask = mask > _MASKED
        mask = mask.expand(mask.shape[0], *logits.shape[-2:])
        visible = mask if visible is None else visible & mask
    return logits, visible


def softmax_logits(logits: Tensor) -> tuple[Float[Tensor, "heads query key"], Bool[Tensor, "heads query key"]]:
    """Return the logits of a hand-written attention; entries at a mask's value count as not seen."""
    logits = _one_sample(logits.detach())[:_HEADS, -_QUERIES:].float()
    return logits, logits > _MASKED


def _one_sample(tensor: Tensor) -> Tensor:
    """Return ``"heads rows columns"`` of the first sample."""
    while tensor.dim() > 3:
        tensor = tensor[0]
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)
