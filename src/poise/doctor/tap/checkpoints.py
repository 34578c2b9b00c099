"""Hooks of checkpoints: what is loaded, and into what."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.state import TapState


class CheckpointHooks:
    """Notes as events what a script loads.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [
            FunctionHook(Optimizer.load_state_dict, after=self._optimizer_loaded),
            FunctionHook(nn.Module.load_state_dict, after=self._model_loaded),
            FunctionHook(torch.load, after=self._file_loaded),
        ]

    def _optimizer_loaded(self, result: Any, optimizer: Any, *_: Any) -> Any:
        self._note("load_state_dict", {"what": "optimizer", "class": type(optimizer).__name__})
        return result

    def _model_loaded(self, result: Any, model: Any, *_: Any) -> Any:
        self.state.sink.loaded.update(map(id, model.parameters()))
        self._note("load_state_dict", {"what": "model", "class": type(model).__name__})
        return result

    def _file_loaded(self, content: Any, *_: Any) -> Any:
        self._note("torch_load", {"has_optimizer_state": holds_optimizer_state(content)})
        return content

    @guarded
    def _note(self, kind: str, payload: dict[str, Any]) -> None:
        self.state.sink.event(self.state.step, kind, payload)


def holds_optimizer_state(content: Any, depth: int = 3) -> bool:
    """Return whether a loaded checkpoint holds the state of an optimizer, however deep in its dictionaries."""
    if type(content) is not dict or depth == 0:
        return False
    if "param_groups" in content and content.get("state"):
        return True
    return any(holds_optimizer_state(value, depth - 1) for value in content.values())
