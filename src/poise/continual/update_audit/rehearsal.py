"""Plain rehearsal: training on new and old data together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.continual.streams.task import Task


def rehearse(
    model: nn.Module,
    old: Task,
    new: Task,
    on_step: Callable[[], None],
    *,
    updates: int = 200,
    batch_size: int = 64,
    lr: float = 1e-3,
    old_weight: float = 0.5,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    optimizer: Callable[..., Any] = torch.optim.AdamW,
) -> None:
    r"""Update a model on new data, with old data in every batch; what :func:`audit_update` audits by default.

    .. math:: L = (1 - w) \, L_\text{new} + w \, L_\text{old}

    Args:
        model: is trained in place.
        old: old data.
        new: new data.
        on_step: called after each update.
        updates: how many.
        batch_size: samples of each of the two in every update.
        lr: learning rate.
        old_weight: :math:`w`.
        loss_fn: of outputs and targets, a mean.
        optimizer: called with parameters and learning rate.

    Raises:
        ValueError: if ``updates`` or ``batch_size`` is below 1, or ``old_weight`` is outside [0, 1].
    """
    if updates < 1 or batch_size < 1 or not 0 <= old_weight <= 1:
        raise ValueError(
            f"updates and batch_size must be at least 1 and old_weight in [0, 1], got {updates}, {batch_size} and "
            f"{old_weight}"
        )
    model.train()
    step = optimizer([p for p in model.parameters() if p.requires_grad], lr)
    for _ in range(updates):
        parts = [_batch(task, batch_size) for task in (new, old)]
        outputs = model(torch.cat([x for x, _ in parts]))
        fresh, replayed = outputs.split([len(y) for _, y in parts])
        loss = (1 - old_weight) * loss_fn(fresh, parts[0][1]) + old_weight * loss_fn(replayed, parts[1][1])
        step.zero_grad()
        loss.backward()
        step.step()
        on_step()


def _batch(task: Task, size: int) -> tuple[Tensor, Tensor]:
    pick = torch.randint(len(task), (min(size, len(task)),))
    return task.x[pick], task.y[pick]
