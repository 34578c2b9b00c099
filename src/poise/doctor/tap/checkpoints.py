"""Hooks of checkpoints: what is loaded, and into what."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import user_line

_SHOWN = 20  # names of parameters in an event


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
            FunctionHook(Optimizer.load_state_dict, finally_=self._optimizer_loaded),  # it has no return statement
            FunctionHook(nn.Module.load_state_dict, after=self._model_loaded),
            FunctionHook(torch.load, after=self._file_loaded),
            FunctionHook(LRScheduler.load_state_dict, finally_=self._scheduler_loaded),
        ]

    def _optimizer_loaded(self, optimizer: Any, *_: Any) -> None:
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        facts = {"class": type(optimizer).__name__, "lr": max(rates, default=None)}
        self._note("load_state_dict", {"what": "optimizer", **facts})

    def _scheduler_loaded(self, scheduler: Any, *_: Any) -> None:
        self._note("load_state_dict", {"what": "scheduler", "class": type(scheduler).__name__})

    def _model_loaded(self, result: Any, model: Any, state_dict: Any, *_: Any) -> Any:
        self.state.sink.loaded.update(map(id, model.parameters()))
        facts: dict[str, Any] = {"class": type(model).__name__}
        missing = list(getattr(result, "missing_keys", None) or ())
        unexpected = list(getattr(result, "unexpected_keys", None) or ())
        if missing or unexpected:  # only strict=False lets them pass
            facts |= {"given": len(state_dict), "missing": missing[:_SHOWN], "unexpected": unexpected[:_SHOWN]}
            facts |= {"missing_total": len(missing), "unexpected_total": len(unexpected), "source": user_line()}
        self._note("load_state_dict", {"what": "model", **facts})
        return result

    def _file_loaded(self, content: Any, *_: Any) -> Any:
        self._note(
            "torch_load",
            {"has_optimizer_state": holds_optimizer_state(content), "has_schedule": _holds_schedule(content)},
        )
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


def _holds_schedule(content: Any, depth: int = 3) -> bool:
    """Return whether a loaded checkpoint holds the state of a learning rate schedule."""
    if type(content) is not dict or depth == 0:
        return False
    return "last_epoch" in content or any(_holds_schedule(value, depth - 1) for value in content.values())
