"""Hooks of loss functions: what cross-entropy is given, and what a loss function returns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.doctor.tap.forward import without_autocast
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.modal import modules_in_training
from poise.doctor.tap.plain import is_compiling, is_plain, is_transforming
from poise.doctor.tap.state import TapState

_LOSSES = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.huber_loss,
    F.kl_div,
    F.l1_loss,
    F.mse_loss,
    F.nll_loss,
    F.smooth_l1_loss,
)
_CROSS_ENTROPY_PARAMETERS = (
    "input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing",
)  # fmt: skip
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
        around = self.state.treatment.wrapping("cross_entropy")
        cross_entropy = FunctionHook(F.cross_entropy, before=self._cross_entropy, after=self._returned)
        if around is not None:
            compute = around(cross_entropy.original)

            def treated(*parameters: Any) -> Tensor:
                return compute(**dict(zip(_CROSS_ENTROPY_PARAMETERS, parameters, strict=True)))

            cross_entropy = FunctionHook(
                F.cross_entropy, before=self._cross_entropy, after=self._returned, instead=treated
            )
        return [cross_entropy, *(FunctionHook(loss, after=self._returned) for loss in _LOSSES)]

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

    def _returned(self, loss: Any, *_: Any) -> Any:
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
