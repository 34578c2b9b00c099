"""Hooks of automatic mixed precision: the loss before it was scaled, steps that were left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.state import TapState
from poise.doctor.tap.step import StepHooks


class AmpHooks:
    """Follows a ``GradScaler``.

    Args:
        state: of the tap.
        step: gets notice of steps that were left out.
    """

    def __init__(self, state: TapState, step: StepHooks) -> None:
        self.state = state
        self._step = step
        self._before: dict[int, tuple[int, Tensor]] = {}  # by optimizer: its steps and the scale before scaler.step

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        scaler = torch.amp.GradScaler
        return [
            FunctionHook(scaler.scale, after=self._scaled),
            FunctionHook(scaler.unscale_, after=self._unscaled),
            FunctionHook(scaler.step, before=self._step_begins, after=self._step_done),
        ]

    def _scaled(self, scaled: Any, scaler: Any, loss: Any) -> Any:
        self._note_scaled(scaled, scaler, loss)
        return scaled

    @guarded
    def _note_scaled(self, scaled: Any, scaler: Any, loss: Any) -> None:
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor):
            interval = self.state.interval
            interval.scaled = (id(scaled), loss.detach())
            interval.scale = scaler._scale

    def _unscaled(self, result: Any, *_: Any) -> Any:
        self.state.interval.scale = None
        return result

    @guarded
    def _step_begins(self, scaler: Any, optimizer: Optimizer, *_: Any) -> None:
        if scaler.is_enabled() and scaler._scale is not None:
            self._before[id(optimizer)] = self.state.steps_of(optimizer), scaler._scale.detach().clone()

    def _step_done(self, result: Any, scaler: Any, optimizer: Optimizer, *_: Any) -> Any:
        steps, scale = self._before.pop(id(optimizer), (0, None))
        if scale is not None:
            skipped = self.state.steps_of(optimizer) == steps
            (self._step.step_skipped if skipped else self._step.step_scaled)(optimizer, scale)
        return result
