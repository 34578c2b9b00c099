"""Hooks of functional dropout: whether it follows the mode of its module."""

from __future__ import annotations

import linecache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_compiling
from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import user_frame, user_line

_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
_STEPS = 3


class DropoutHooks:
    """Notes functional dropout that is on in evaluation, and dropout that is off in training.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._told: set[str] = set()
        self._last, self._steps = -1, 0  # the last step in which dropout was off, and so many in a row

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [FunctionHook(function, before=self._dropout) for function in _FUNCTIONS]

    def _dropout(self, _: Any, p: float, training: bool, *__: Any) -> None:
        if is_compiling() or p <= 0 or self.state.busy or self.state.shadowing:
            return
        if not torch.is_grad_enabled():
            if training and "on" not in self._told:
                self._evaluated()
        elif training:
            self._last, self._steps = -1, 0
        elif "off" not in self._told:
            self._off(self.state.counts["step"])

    def _off(self, step: int) -> None:
        # An evaluation that keeps its graph lies between two steps, however many batches it has.
        if step != self._last:
            self._steps = self._steps + 1 if step == self._last + 1 else 1
            self._last = step
        if self._steps >= _STEPS:
            self._trained()

    @guarded
    def _trained(self) -> None:
        """Dropout was off in several steps in a row."""
        self._told.add("off")
        frame = user_frame()
        owner = None if frame is None else frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not owner.training:
            self._tell("dropout_off_in_training", owner)

    @guarded
    def _evaluated(self) -> None:
        """Note dropout that is on in a pass without gradients, in a module that is in evaluation mode."""
        frame = user_frame()
        owner = None if frame is None else frame.f_locals.get("self")
        if frame is None or not isinstance(owner, nn.Module) or owner.training:
            return
        # Who writes "training=True" wants it on: dropout as a sample of models.
        if "training" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            return
        self._told.add("on")
        self._tell("dropout_in_evaluation", owner)

    def _tell(self, kind: str, owner: nn.Module) -> None:
        name = self.state.names.modules.get(id(owner), type(owner).__name__)
        self.state.sink.event(self.state.step, kind, {"module": name, "source": user_line()})
