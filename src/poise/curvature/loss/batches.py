"""Batches of any shape: a tensor, a tuple, a mapping, or something that holds those."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from poise.curvature.loss.random_states import preserved_random_states


def as_batches(data: Any) -> list[Any]:
    """Return the batches that ``data`` stands for, and leave all random states as they were.

    Args:
        data: one batch (a tensor, a mapping, or a tuple or list with a tensor directly in it) or an iterable of batches
            (a loader, a generator, a list of pairs).

    Raises:
        ValueError: if there is no batch.
        TypeError: if ``data`` is neither.
    """
    if _is_batch(data):
        return [data]
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be a batch or an iterable of batches, got {type(data).__name__}")
    with preserved_random_states(torch.device("cpu")):
        batches = list(data)
    if not batches:
        raise ValueError("data must hold at least one batch, got none")
    return batches


def _is_batch(data: Any) -> bool:
    if isinstance(data, Tensor | Mapping):
        return True
    return isinstance(data, tuple | list) and any(isinstance(part, Tensor) for part in data)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a copy of a batch with ``function`` applied to each of its tensors; the rest is passed on."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped: Any = copy.copy(batch)
        for key, value in batch.items():
            mapped[key] = map_tensors(function, value)
        return mapped
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, part) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(function, part) for part in batch)
    return batch


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in the order in which :func:`map_tensors` meets them."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, tuple | list):
        for part in batch:
            yield from tensors_of(part)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on ``device``; the batch itself is left alone."""
    if all(t.device == device for t in tensors_of(batch)):
        return batch
    return map_tensors(lambda t: t.to(device, non_blocking=True), batch)


def count_examples(batch: Any) -> int:
    """Return the first dimension of the first tensor that has one.

    Raises:
        TypeError: if there is none.
    """
    for tensor in tensors_of(batch):
        if tensor.ndim:
            return tensor.shape[0]
    raise TypeError(
        f"cannot count the examples of a batch of type {type(batch).__name__}; "
        "give LossFunction(loss_fn, n_examples=...) as loss_fn"
    )
