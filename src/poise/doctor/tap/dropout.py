"""Hooks of functional dropout: whether it follows the mode of its module."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
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
_MODULES = str(Path(torch.__file__).parent)


class DropoutHooks:
    """Notes functional dropout that is on in evaluation, and on sampled steps whether it is off in training.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._told = False

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [FunctionHook(function, before=self._dropout) for function in _FUNCTIONS]

    def _dropout(self, _: Any, p: float, training: bool, *__: Any) -> None:
        if is_compiling():
            return
        if torch.is_grad_enabled():
            if self.state.sampling and p > 0:
                self._trained(training)
        elif training and p > 0 and not self._told:
            self._evaluated()

    @guarded
    def _trained(self, training: bool) -> None:
        if not _called_by_module():
            self.state.interval.modes.append(not training)

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
        self._told = True
        name = self.state.names.modules.get(id(owner), type(owner).__name__)
        self.state.sink.event(self.state.step, "dropout_in_evaluation", {"module": name, "source": user_line()})


def _called_by_module() -> bool:
    """Return whether nn.Dropout calls: it is seen as a module."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_MODULES):
        frame = frame.f_back  # type: ignore[assignment]
    while frame is not None and frame.f_code.co_filename.endswith("functional.py"):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_filename.endswith("dropout.py")
