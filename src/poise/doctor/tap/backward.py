"""Hooks of the backward pass: losses, gradients that are reset, clipped or hooked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.doctor.tap.backward_pass import BackwardPass
from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.leftover_gradients import note_leftover_gradients
from poise.doctor.tap.loss_call import is_examined
from poise.doctor.tap.nonfinite import explain_nonfinite_forward
from poise.doctor.tap.plain import is_compiling, is_transforming
from poise.doctor.tap.state import TapState


class BackwardHooks:
    """Notes the loss of every backward pass, and explains one that is not finite while its graph exists.

    Args:
        state: of the tap.
        forward: repeats forward passes for an explanation.

    Attributes:
        loss_alarm: a loss from here on may be a spike.
    """

    def __init__(self, state: TapState, forward: ForwardHooks) -> None:
        self.state = state
        self.loss_alarm = math.inf
        self._forward = forward
        self._depth = 0  # a backward pass may run others within (checkpointing): the outermost counts

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [
            FunctionHook(torch.autograd.backward, before=self._backward, finally_=self._backward_over),
            FunctionHook(Tensor.register_hook, before=self._gradient_hooked),
            FunctionHook(nn.utils.clip_grad_norm_, after=self._clipped),
            FunctionHook(Optimizer.zero_grad, before=self._zero_grad),
            FunctionHook(nn.Module.zero_grad, before=self._zero_grad),
        ]

    # Tensor.backward ends in torch.autograd.backward too.
    def _backward(self, tensors: Any, *_: Any) -> None:
        self._depth += 1
        if self._depth == 1 and not is_compiling():
            self.before_backward(tensors[0] if isinstance(tensors, tuple | list) and len(tensors) == 1 else tensors)

    def _backward_over(self, *_: Any) -> None:
        self._depth -= 1

    @guarded
    def before_backward(self, root: Any) -> None:
        """A backward pass begins at ``root``."""
        state = self.state
        state.counts["backward"] += 1
        state.interval.backwards += 1
        loss = self._loss_of(root)
        if loss is not None:
            state.interval.losses.append(loss)
        sampling = state.sampler.sampling
        # A float below the alarm is neither a spike nor NaN nor infinite: most steps end here.
        if sampling or state.is_early:
            for timeline in state.timelines.values():
                note_leftover_gradients(timeline)
        if sampling or (isinstance(loss, float) and not loss < self.loss_alarm):
            self._examine_loss(root, loss)
        if sampling or is_examined(state.counts["backward"]):
            state.call_probes("loss_root", BackwardPass(root, state))
        if sampling and state.stepping is None:  # a closure's losses are differentiated at points of a line search
            state.call_probes("before_backward", BackwardPass(root, state))

    def _loss_of(self, root: Any) -> float | Tensor | None:
        if not isinstance(root, Tensor) or root.numel() != 1:
            return None
        scaled = self.state.interval.scaled
        loss = scaled[1] if scaled is not None and scaled[0] == id(root) else root
        return loss.item() if loss.is_cpu else loss.detach()

    def _examine_loss(self, root: Any, loss: float | Tensor | None) -> None:
        state = self.state
        if not isinstance(loss, float):
            return
        if not math.isfinite(loss):
            state.explain("nonfinite_forward", lambda: explain_nonfinite_forward(state, self._forward, root))
        elif any(t.loss_spiked(loss) for t in state.timelines.values()):
            state.trigger()

    def _gradient_hooked(self, *_: Any) -> None:
        if not self.state.busy:
            self.state.gradients_hooked = True

    def _clipped(self, norm: Any, _: Any, max_norm: Any, *__: Any) -> Any:
        if not is_transforming():
            self._note_clipping(norm, max_norm)
        return norm

    @guarded
    def _note_clipping(self, norm: Any, max_norm: Any) -> None:
        scale = self.state.interval.scale  # clipped before they are unscaled: both norms are multiples of it
        norm, limit = norm.detach() if isinstance(norm, Tensor) else norm, float(max_norm)
        self.state.interval.clip = (norm, limit) if scale is None else (norm / scale, limit / float(scale))

    def _zero_grad(self, owner: Any, *_: Any) -> None:
        # Only a sampled or an early step asks whether gradients were reset; another optimizer's step may begin one.
        state = self.state
        if not is_compiling() and (state.sampler.sampling or len(state.timelines) > 1 or state.is_early):
            self._note_reset(owner)

    @guarded
    def _note_reset(self, owner: Any) -> None:
        covered = {id(p) for p in owner.parameters()} if isinstance(owner, nn.Module) else set()
        for timeline in self.state.timelines.values():
            if owner is timeline.optimizer or (covered and all(id(p) in covered for p in timeline.parameters)):
                timeline.gradients_reset = True
