"""Tensors that are spread over processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def local_shard(tensor: Any) -> Tensor:
    """Return this process's shard of a distributed tensor; any other tensor as it is."""
    if type(tensor) in (Tensor, nn.Parameter):  # nearly all; to look up a missing attribute is slow
        return tensor
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
