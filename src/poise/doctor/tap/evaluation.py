"""Passes without gradients: which of them evaluate the model, and in which mode."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from poise.doctor.tap.modal import MODAL
from poise.doctor.tap.state import TapState

_STEPS, _RARE = 10, 5  # an evaluation comes after so many steps, and at most after every fifth
_SHOWN = 20  # names of modules in an event


class Evaluations:
    """Notes as an event an evaluation of a model that is in training mode, where no loss is computed.

    Passes without gradients also belong to training: pseudo-labels, targets, self-conditioning. Those come with every
    step or every other; an evaluation is rare. No evaluation either: repeated passes of one batch (dropout as a sample
    of models), a pass of the batch that was trained on last, and passes that only collect batch statistics. With
    several optimizers, or in reinforcement learning, samples are made in training mode on purpose.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._stretches = 0  # between two steps, with passes without gradients
        self._step = -1  # of the last of them
        self._modules: list[str] = []  # in training mode, in a stretch that may be an evaluation
        self._last: Any = None  # input of the last pass, as a weak reference
        self._trained: Any = None  # and of the last one with gradients

    def trained(self, args: tuple[Any, ...]) -> None:
        """The model is called in training."""
        if self._modules:
            self.over()
        if args and isinstance(args[0], Tensor):
            self._trained = weakref.ref(args[0])

    def called(self, root: nn.Module, args: tuple[Any, ...]) -> None:
        """The model is called without gradients."""
        state, given = self.state, args[0] if args else None
        step = state.counts["step"]
        if step != self._step:
            self.over()
            self._step, self._last = step, None
            self._stretches += 1
            if root.training and self._may_be_evaluation():
                self._modules = self._in_training(root)
        if self._modules:
            if not root.training or _is_same(given, self._last) or _is_same(given, self._trained):
                self._modules = []
            self._last = weakref.ref(given) if isinstance(given, Tensor) else None

    def over(self) -> None:
        """The passes without gradients are over: tell of them if they were an evaluation in training mode."""
        state, modules = self.state, self._modules
        self._modules = []
        if modules and not state.off and "eval_in_train_mode" not in state.explained:
            state.explained.add("eval_in_train_mode")
            state.sink.event(state.step, "eval_in_train_mode", {"modules": modules[:_SHOWN]})

    def _may_be_evaluation(self) -> bool:
        state = self.state
        if state.explained & {"eval_in_train_mode", "policy_gradient", "bootstrapped"} or len(state.timelines) != 1:
            return False
        return self._step >= max(_STEPS, _RARE * self._stretches)

    def _in_training(self, root: nn.Module) -> list[str]:
        """Name the modules in training mode; none where some are in evaluation mode or only collect statistics."""
        modal = [m for m in root.modules() if isinstance(m, MODAL) and not _does_nothing(m)]
        chosen = any(not m.training or getattr(m, "momentum", 0.1) in (None, 1.0) for m in modal)
        return [] if chosen else [self.state.names.modules.get(id(m), type(m).__name__) for m in modal]


def _does_nothing(module: nn.Module) -> bool:
    return getattr(module, "p", None) == 0 or getattr(module, "track_running_stats", True) is False


def _is_same(given: Any, kept: Any) -> bool:
    return isinstance(given, Tensor) and kept is not None and kept() is given
