"""What the tap keeps of one optimizer: its steps, its parameters, and what was seen since its last step."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_LAYERS = 256


@dataclass
class Interval:
    """What happened between two optimizer steps."""

    losses: list[float | Tensor] = field(default_factory=list)
    loss_output: float | Tensor | None = None  # of a loss function, for loops that never call backward()
    backwards: int = 0
    clip: tuple[Any, float] | None = None  # total norm before clipping, max_norm
    observations: list[tuple[str, Any, str, Any]] = field(default_factory=list)  # signal, module or None, site, value
    seen: set[tuple[str, int]] = field(default_factory=set)
    modes: list[bool] = field(default_factory=list)  # True per BatchNorm or Dropout that ran in eval mode
    scaled: tuple[int, Tensor] | None = None  # id of a scaled loss, the loss before GradScaler.scale

    def loss(self) -> float | Tensor | None:
        """Mean over the backward roots; what a loss function returned last if there was no scalar root."""
        if not self.losses:
            return self.loss_output
        if len(self.losses) == 1:
            return self.losses[0]
        return sum(self.losses[1:], start=self.losses[0]) / len(self.losses)


@dataclass
class Timeline:
    """One optimizer's own count of steps, from 0; a step that a GradScaler skipped counts."""

    optimizer: Optimizer
    prefix: str
    parameters: list[Tensor]
    names: list[str]
    step: int = 0
    sampled: bool = False
    gradients_reset: bool = True
    stale: Tensor | None = None  # whether every backward pass since the last step began with gradients left over
    lr: float | Tensor = 0.0
    grad_norm: float | Tensor | None = None
    layer_norms: list[Tensor] | None = None  # of the gradients as the optimizer gets them
    norm_now: Tensor | None = None  # their total; differs from grad_norm where gradients were clipped
    with_gradient: list[int] = field(default_factory=list)
    hyperparameters: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: float = 0.0
    norm_seconds: float = 0.0
    norm_every: int = 1
    ended: float = field(default_factory=time.perf_counter)
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    recent_norms: deque[float] = field(default_factory=lambda: deque(maxlen=25))

    def shown_of(self, indices: Sequence[int]) -> list[int]:
        """Return the positions of ``indices`` that get a signal of their own: all, or 256 spread evenly."""
        count = len(indices)
        return list(range(count)) if count <= _LAYERS else [i * count // _LAYERS for i in range(_LAYERS)]

    def loss_spiked(self, loss: float) -> bool:
        """Return whether ``loss`` stands out from the last 50: z > 8 in units of the scaled MAD, and by over 5 %."""
        recent = self.recent_losses
        if len(recent) < 10 or loss <= max(recent):  # the cheap test first: this runs on every step
            return False
        median = statistics.median(recent)
        deviation = statistics.median(abs(x - median) for x in recent)
        scale = 1.4826 * deviation + 1e-3 * abs(median)
        return loss - median > max(8.0 * scale, 0.05 * abs(median))

    def norm_spiked(self, norm: float) -> bool:
        """Return whether ``norm`` is over 3 times the median of the last 25 gradient norms."""
        recent = self.recent_norms
        return len(recent) >= 10 and norm > max(recent) and norm > 3.0 * statistics.median(recent)
