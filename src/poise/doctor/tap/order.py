"""Hooks of what has an order: unscaling before clipping, one optimizer for a whole run."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_compiling
from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import user_line

_AGAIN = 3  # optimizers one after the other for the same parameters


class OrderHooks:
    """Notes as events what a script does in the wrong order, or again and again.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._scaler: Any = None  # of the gradients, while they are not unscaled
        self._made: list[tuple[weakref.ref[Tensor], int]] = []  # first parameter and id of each optimizer
        self._told: set[str] = set()

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        scaler, utils = torch.amp.GradScaler, nn.utils
        return [
            FunctionHook(scaler.scale, before=self._scaled),
            FunctionHook(scaler.unscale_, before=self._unscaled),
            FunctionHook(scaler.step, before=self._unscaled),
            FunctionHook(scaler.update, before=self._unscaled),
            FunctionHook(utils.clip_grad_norm_, before=self._clips),
            FunctionHook(utils.clip_grad_value_, before=self._clips),
            FunctionHook(Optimizer.add_param_group, finally_=self._made_optimizer),
        ]

    def _scaled(self, scaler: Any, *_: Any) -> None:
        self._scaler = scaler if scaler.is_enabled() else None

    def _unscaled(self, *_: Any) -> None:
        self._scaler = None

    def _clips(self, _: Any, limit: Any, *__: Any) -> None:
        if self._scaler is not None and not is_compiling() and "clip" not in self._told:
            self._clips_scaled(limit)

    @guarded
    def _clips_scaled(self, limit: Any) -> None:
        self._told.add("clip")
        facts = {"limit": float(limit), "scale": self._scaler.get_scale(), "source": user_line()}
        if facts["scale"] != 1.0:
            self.state.sink.event(self.state.step, "clip_before_unscale", facts)

    def _made_optimizer(self, optimizer: Any, *_: Any) -> None:
        if not is_compiling() and len(optimizer.param_groups) == 1:
            self._note_optimizer(optimizer)

    @guarded
    def _note_optimizer(self, optimizer: Optimizer) -> None:
        first = optimizer.param_groups[0]["params"][0]
        steps = [
            self.state.timelines[id].step
            for made, id in self._made
            if made() is first
            and id in self.state.timelines
            and _is_alike(self.state.timelines[id].optimizer, optimizer)
        ]
        self._made.append((weakref.ref(first), id(optimizer)))
        if len(steps) + 1 >= _AGAIN and all(steps) and "optimizer" not in self._told:
            self._told.add("optimizer")
            options = optimizer.defaults
            payload = {
                "class": type(optimizer).__name__,
                "steps": max(steps),
                "memory": memory(options),
                "count": len(steps) + 1,
                "source": user_line(),
            }
            self.state.sink.event(self.state.step, "optimizer_recreated", payload)


def memory(options: dict[str, Any]) -> float:
    """Return how many steps an optimizer looks back, of the options it was made with; 0 if it has no state."""
    betas = options.get("betas")
    kept = [b for b in (betas if isinstance(betas, tuple | list) else ()) if isinstance(b, float)]
    kept += [float(options[name]) for name in ("momentum", "alpha", "rho") if isinstance(options.get(name), float)]
    longest = max(kept, default=0.0)
    return 1 / (1 - longest) if 0 < longest < 1 else 0.0


def _is_alike(one: Optimizer, other: Optimizer) -> bool:
    return type(one) is type(other) and one.defaults.get("lr") == other.defaults.get("lr")
