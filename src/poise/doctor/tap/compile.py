"""Hooks of compilers: compiled code is not changed, and is observed from outside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.jit.frontend import get_jit_def
from torch.optim import Optimizer

from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.state import TapState
from poise.doctor.tap.step import StepHooks


class CompileHooks:
    """Notes what is compiled by ``torch.compile``, and keeps what poise replaced from every compiler.

    Args:
        state: of the tap.
        forward: stops observing modules once a model is compiled.
        step: gets notice of compiled models and of the steps of compiled optimizers.
    """

    def __init__(self, state: TapState, forward: ForwardHooks, step: StepHooks) -> None:
        self.state = state
        self._forward, self._step = forward, step

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        suspend = self._suspend
        return [
            FunctionHook(torch.compile, before=self._compiling, after=self._compiled),
            FunctionHook(nn.Module.compile, before=self._compiling),
            FunctionHook(get_jit_def, before=suspend),  # TorchScript reads every function here before it compiles it
            FunctionHook(torch.jit.trace, before=suspend),
        ]

    def _suspend(self, *_: Any) -> None:
        self._forward.suspend()

    def _compiling(self, *_: Any) -> None:
        self._note_compiling()

    @guarded
    def _note_compiling(self) -> None:
        self._step.use_shadow_forwards()

    def _compiled(self, compiled: Any, target: Any, *_: Any) -> Any:
        owner = getattr(target, "__self__", None)
        if isinstance(owner, Optimizer) and getattr(target, "__name__", "") == "step":
            return self._around_step(owner, compiled)
        if isinstance(compiled, nn.Module):
            self._model_compiled(compiled)
        return compiled

    @guarded
    def _model_compiled(self, compiled: nn.Module) -> None:
        self._step.adopt([*self.state.roots, compiled])

    def _around_step(self, optimizer: Optimizer, compiled: Callable[..., Any]) -> Callable[..., Any]:
        # torch calls no step hook from compiled code: they are called around it.
        @functools.wraps(compiled)
        def step(*args: Any, **kwargs: Any) -> Any:
            self._step.before(optimizer, args, kwargs)
            result = compiled(*args, **kwargs)
            self._step.after(optimizer, args, kwargs)
            return result

        return step
