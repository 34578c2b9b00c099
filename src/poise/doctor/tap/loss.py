"""Hooks of loss functions: what cross-entropy is given, and what a loss function returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.doctor.tap.forward import without_autocast
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.loss_call import LossCall, is_examined
from poise.doctor.tap.modal import modules_in_training
from poise.doctor.tap.plain import is_compiling, is_plain, is_transforming
from poise.doctor.tap.state import TapState

_LOSSES = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.ctc_loss,
    F.huber_loss,
    F.kl_div,
    F.l1_loss,
    F.mse_loss,
    F.nll_loss,
    F.smooth_l1_loss,
)
_SHOWN = 20  # names of modules in an event


class LossHooks:
    """Notes what loss functions return, and on sampled steps lets probes see what cross-entropy is given.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        hooks = [self._hook(loss, self._arguments_of(loss)) for loss in _LOSSES]
        return [self._cross_entropy_hook(), *hooks]

    def _cross_entropy_hook(self) -> FunctionHook:
        seen = self._arguments_of(F.cross_entropy)

        def before(*parameters: Any) -> None:
            seen(*parameters)
            self._cross_entropy(*parameters)

        hook = self._hook(F.cross_entropy, before)
        around = self.state.treatment.wrapping("cross_entropy")
        if around is None:
            return hook
        compute, names = around(hook.original), tuple(inspect.signature(F.cross_entropy).parameters)

        def treated(*parameters: Any) -> Tensor:
            return compute(**dict(zip(names, parameters, strict=True)))

        return self._hook(F.cross_entropy, before, treated)

    def _hook(self, loss: Any, before: Any, instead: Any = None) -> FunctionHook:
        name, names = loss.__name__, tuple(inspect.signature(loss).parameters)

        def after(result: Any, *parameters: Any) -> Any:
            if is_compiling():
                return result
            if torch.is_grad_enabled() and _is_nonfinite(result) and not self.state.busy:
                self._examine(name, dict(zip(names, parameters, strict=True)))
            return self._returned(result)

        return FunctionHook(loss, before=before, after=after, instead=instead)

    def _arguments_of(self, loss: Any) -> Callable[..., None]:
        """Return what is called with the arguments of ``loss`` each time it is called."""
        name, names, calls = loss.__name__, tuple(inspect.signature(loss).parameters), count(1)

        def called(*parameters: Any) -> None:
            if is_compiling():
                return
            state = self.state
            if is_examined(next(calls)) and not state.busy and torch.is_grad_enabled():
                self._examine(name, dict(zip(names, parameters, strict=True)))

        return called

    @guarded
    def _examine(self, name: str, options: dict[str, Any]) -> None:
        prediction, target = options.get("input", options.get("log_probs")), options.get("target")
        target = options.get("targets") if target is None else target
        if not (is_plain(prediction) and is_plain(target)) or not prediction.numel():
            return
        if prediction.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # numbers cannot be asked for
        self.state.call_probes("loss_called", LossCall(name, prediction, target, options))

    def _cross_entropy(self, logits: Any, target: Any, weight: Any, _: Any, ignore_index: int, *__: Any) -> None:
        # The loss may well be computed outside the compiled part of a model: it is seen there too.
        state = self.state
        if not state.sampling or state.busy or is_compiling() or not torch.is_grad_enabled():
            return
        if is_plain(logits) and is_plain(target):
            self._loss_inputs(logits, target, ignore_index)

    @guarded
    def _loss_inputs(self, logits: Tensor, target: Tensor, ignore_index: int) -> None:
        if not self.state.sink.is_first("loss_inputs", None):
            return
        with without_autocast():
            self.state.call_probes("loss_inputs", logits.detach(), target.detach(), ignore_index)

    def _returned(self, loss: Any) -> Any:
        state = self.state
        if is_transforming() or state.busy:
            return loss
        if torch.is_grad_enabled():
            state.interval.loss_output = loss  # nothing here can fail, and remedies want it where nothing is watched
        elif not state.shadowing:
            self._loss_without_gradient()
        return loss

    @guarded
    def _loss_without_gradient(self) -> None:
        """The script evaluates: then Dropout and BatchNorm should not be in training mode."""
        state = self.state
        if "eval_in_train_mode" in state.explained or not state.timelines:
            return
        state.explained.add("eval_in_train_mode")
        modules = [state.names.modules.get(id(m), type(m).__name__) for m in modules_in_training(state.names.roots)]
        if modules:
            state.sink.event(state.step, "eval_in_train_mode", {"modules": modules[:_SHOWN]})


def _is_nonfinite(loss: Any) -> bool:
    # On a device the number would have to be waited for.
    return type(loss) is Tensor and loss.is_cpu and loss.numel() == 1 and not math.isfinite(loss.item())
