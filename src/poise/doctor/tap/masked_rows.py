"""Rows of a softmax in which everything is masked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def masked_rows(function: str, args: Any, kwargs: Any) -> dict[str, int]:
    """Return how many rows of a softmax hold nothing but minus infinity, and of how many; empty where none does.

    Args:
        function: name of a function of torch; only ``softmax`` and ``multi_head_attention_forward`` are examined.
        args: its arguments by position.
        kwargs: its arguments by name.
    """
    named = kwargs or {}
    if function == "softmax":
        given = named.get("input", args[0] if args else None)
        dim = named.get("dim", args[1] if len(args) > 1 else None)
        return _count(given, dim) if isinstance(dim, int) else {}
    if function == "multi_head_attention_forward":
        masks = [named.get(name) for name in ("key_padding_mask", "attn_mask")]
        return next(filter(None, (_count(mask, -1) for mask in masks)), {})
    return {}


def _count(scores: Any, dim: int) -> dict[str, int]:
    """Count the rows along ``dim`` that are all minus infinity, or all True in a mask of what may not be seen."""
    if not isinstance(scores, Tensor) or not scores.dim():
        return {}
    hidden = scores if scores.dtype == torch.bool else scores == -math.inf
    rows = hidden.all(dim)
    count = int(rows.sum())
    return {"masked_rows": count, "rows": rows.numel()} if count else {}
