"""Barrier between two models: how much the loss rises on the straight line from one to the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn


@dataclass(frozen=True, slots=True)
class LossBarrier:
    """Loss along a straight line between two models.

    Args:
        height: largest rise above the straight line between the two end losses; at least 0.
        positions: position of each point, 0 at the first model and 1 at the second.
        losses: loss at each point.
    """

    height: float
    positions: Float[np.ndarray, " points"]
    losses: Float[np.ndarray, " points"]


@torch.no_grad()
def loss_barrier(
    first: nn.Module, second: nn.Module, loss: Callable[[nn.Module], float], points: int = 11
) -> LossBarrier:
    """Measure the loss barrier between two models.

    Models that descend from one and stayed in its basin have none; independent trainings have one, and averaging them
    is of no use. Floating buffers are interpolated too; other buffers are the first model's.

    Args:
        first: a model.
        second: a model with the same parameters and buffers.
        loss: gives the loss of a model, for example over a validation set.
        points: points on the line, both ends among them; at least 3.

    Raises:
        ValueError: if ``points`` is below 3, names or shapes differ, or the loss is not finite at an end.

    References:
        Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020, arXiv:1912.05671.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, got {points}")
    a, b = first.state_dict(), second.state_dict()
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        raise ValueError("first and second must have the same names and shapes")
    positions = np.linspace(0, 1, points)
    model = copy.deepcopy(first)
    losses = np.empty(points)
    for i, position in enumerate(positions):
        between = {n: torch.lerp(t, b[n].to(t), float(position)) if t.is_floating_point() else t for n, t in a.items()}
        model.load_state_dict(between)
        losses[i] = float(loss(model))
    if not np.isfinite(losses[[0, -1]]).all():
        raise ValueError(f"loss must be finite at both models, got {losses[0]} and {losses[-1]}")
    rise = losses - ((1 - positions) * losses[0] + positions * losses[-1])
    return LossBarrier(float(max(0.0, np.nanmax(rise[1:-1]))), positions, losses)
