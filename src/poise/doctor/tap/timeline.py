"""What the tap keeps of one optimizer: its steps, its parameters, and what was observed since its last step."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.tap.interval import Interval

_LAYERS = 256
_COLUMNS = ("lr", "step_seconds", "backwards", "loss", "grad_norm", "clip_max", "amp_scale", "amp_skipped")
_LOSS = _COLUMNS.index("loss")


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
    row_names: dict[tuple[bool, ...], tuple[str, ...]] = field(default_factory=dict)
    late_amp: list[tuple[int, float | Tensor]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)  # of what is recorded on every step
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    recent_norms: deque[float] = field(default_factory=lambda: deque(maxlen=25))

    def shown_of(self, indices: Sequence[int]) -> list[int]:
        """Return the positions of ``indices`` that get a signal of their own: all, or 256 spread evenly."""
        count = len(indices)
        return list(range(count)) if count <= _LAYERS else [i * count // _LAYERS for i in range(_LAYERS)]

    @property
    def norm_due(self) -> bool:
        """Whether the gradients of this step are to be measured."""
        return self.sampled or self.step % self.norm_every == 0

    def note_norm_seconds(self, seconds: float) -> None:
        """Smooth what measuring the gradients takes."""
        self.norm_seconds = 0.8 * self.norm_seconds + 0.2 * seconds if self.norm_seconds else seconds

    def add_row(self, seconds: float, interval: Interval, amp: tuple[float | Tensor, float] | None) -> None:
        """Keep what is recorded of every step, in the order of :data:`_COLUMNS`."""
        clip = None if interval.clip is None else interval.clip[1]
        scale, skipped = (None, None) if amp is None else amp
        row = [self.step, self.lr, seconds, interval.backwards, interval.loss(), self.grad_norm, clip, scale, skipped]
        self.rows.append(row)

    def last_amp(self, scale: float | Tensor) -> None:
        """Note the scale of a GradScaler for the step that has just been taken."""
        if self.rows:
            self.rows[-1][-2:] = scale, 0.0
        else:
            self.late_amp.append((self.step - 1, scale))

    def take_rows(self) -> Iterator[tuple[int, tuple[str, ...], list[Any]]]:
        """Hand over the rows that wait: step, names of signals, values."""
        rows, self.rows = self.rows, []
        for step, *values in rows:
            loss = values[_LOSS]
            if isinstance(loss, float) and math.isfinite(loss):
                self.recent_losses.append(loss)
            there = tuple(value is not None for value in values)
            yield step, self._names(there), [value for value in values if value is not None]
        late, self.late_amp = self.late_amp, []
        for step, scale in late:
            yield step, (self.prefix + "amp_scale", self.prefix + "amp_skipped"), [scale, 0.0]

    def _names(self, there: tuple[bool, ...]) -> tuple[str, ...]:
        names = self.row_names.get(there)
        if names is None:
            names = tuple(self.prefix + column for column, is_there in zip(_COLUMNS, there, strict=True) if is_there)
            self.row_names[there] = names
        return names

    def loss_alarm(self) -> float:
        """Return a loss below which no loss can be a spike; infinity while too few losses were seen."""
        recent = self.recent_losses
        return max(recent) if len(recent) >= 10 else math.inf

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
