"""Rows of a layer that a step does not move, or moves less."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class FrozenRows:
    """What keeps rows where they are; :meth:`remove` ends it."""

    def __init__(self, layer: nn.Linear, rows: Tensor, optimizer: Optimizer, scale: float) -> None:
        self._layer, self._rows, self._scale = layer, rows, scale
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Let the rows move again."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        params = (self._layer.weight, self._layer.bias)
        self._kept = [(p, p[self._rows].clone()) for p in params if p is not None]

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for parameter, old in self._kept:
            parameter[self._rows] = old if self._scale == 0 else torch.lerp(old, parameter[self._rows], self._scale)
        self._kept = []


def freeze_rows(layer: nn.Linear, rows: Iterable[int], optimizer: Optimizer, scale: float = 0.0) -> FrozenRows:
    """Keep rows of a linear layer, with their biases, where they are while an optimizer steps.

    They are put back after each step: setting their gradients to zero does not suffice, since weight decay and momentum
    still move them.

    Args:
        layer: usually the head; its rows are the classes.
        rows: which ones, such as the old classes.
        optimizer: takes the steps.
        scale: fraction of each step that the rows take; 0 freezes them.

    Returns:
        A handle with ``remove()``.

    Raises:
        TypeError: if ``layer`` is not an ``nn.Linear``.
        ValueError: if a row does not exist, or ``scale`` is outside [0, 1).

    References:
        Harun and Kanan, TMLR 2024, arXiv:2306.01904 (old output class freezing).
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be a torch.nn.Linear, got {type(layer).__name__}")
    chosen = sorted({int(row) for row in rows})
    if not chosen or chosen[0] < 0 or chosen[-1] >= layer.out_features:
        raise ValueError(f"rows must be at least one of 0 to {layer.out_features - 1}, got {chosen[:10]}")
    if not 0 <= scale < 1:
        raise ValueError(f"scale must lie in [0, 1), got {scale}")
    return FrozenRows(layer, torch.tensor(chosen, device=layer.weight.device), optimizer, scale)
