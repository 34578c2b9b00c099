"""Hooks of the forward pass: calls of the model and, on sampled steps, of all its modules, attention and ReLUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.doctor.tap.evaluation import Evaluations
from poise.doctor.tap.forward_observer import ForwardObservation, Logits
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.graph import constant_factor, op_name, origin
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_plain, is_transforming
from poise.doctor.tap.shadow import RootCall
from poise.doctor.tap.state import TapState

_FIRST_CALLS = 16  # of the model, seen by some probes whatever is sampled


class ForwardHooks:
    """Keeps the batches that the model is called with; on sampled steps it lets probes see what its modules compute.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._stack: list[tuple[nn.Module, list[str]]] = []
        self._evaluations = Evaluations(state)
        treatment = state.treatment
        attention, softmax = treatment.wrapping("attention"), treatment.wrapping("attention_softmax")
        self._is_treated = attention is not None or softmax is not None
        self._observation = ForwardObservation(self, attention, softmax, state.fail)
        state.at_fault.append(self.stop)

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [
            FunctionHook(nn.Module._call_impl, before=self._module_called),
            FunctionHook(F.normalize, before=self._normalized),
        ]

    def open(self) -> None:
        """The watch begins."""
        if self._is_treated or self.state.sampling:
            self._observation.start()

    def start(self) -> None:
        """A sampled step begins: observe all modules."""
        if not self.state.compiled:
            self._observation.start()

    def stop(self) -> None:
        """A sampled step is over."""
        self._stack.clear()
        if not self._is_treated:
            self._observation.stop()

    def close(self) -> None:
        """The watch ends."""
        self._evaluations.over()
        self._stack.clear()
        self._observation.stop()

    def suspend(self) -> None:
        """Something is going to be compiled within a forward pass: it must find torch's own functions."""
        self._observation.suspend()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the forward pass that runs in this context, sampled step or not: the watch runs it itself."""
        state, stack = self.state, self._stack
        before = state.busy, state.shadowing
        state.busy, state.shadowing, self._stack = False, True, []
        self._observation.start()
        try:
            yield
        finally:
            state.busy, state.shadowing = before
            self._stack = stack
            if not self._is_treated and (not state.sampling or state.compiled):
                self._observation.stop()

    @property
    def module(self) -> nn.Module | None:
        """The module whose forward runs right now."""
        return self._stack[-1][0] if self._stack else None

    # ---- the model -------------------------------------------------------------------------------------------------

    def _module_called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # This runs for every call of every module: it must be short.
        for root in self.state.roots:
            if root is module:
                if not self.state.shadowing and not is_transforming():
                    self._root_called(module, args, kwargs)
                return

    @guarded
    def _root_called(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the batch until the step is over, in case its step must be explained."""
        state = self.state
        state.counts["forward"] += 1
        if not state.grad_enabled:
            self._evaluations.called(root, args)
        else:
            self._evaluations.trained(args)
            state.calls.append(RootCall.capture(root, args, kwargs))
            if state.counts["forward"] <= _FIRST_CALLS:
                state.call_probes("early_inputs", args, kwargs)
            if state.sampler.sampling:
                state.call_probes("model_inputs", args, kwargs)

    # ---- modules, on sampled steps ---------------------------------------------------------------------------------

    def observes(self) -> bool:
        """Return whether what is computed now is observed."""
        state = self.state
        if state.busy or state.off:
            return False
        return state.shadowing or (state.sampler.sampling and torch.is_grad_enabled() and not state.compiled)

    @guarded
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward of a module begins."""
        state = self.state
        if not self._stack and not state.roots and state.grad_enabled:
            # Before the first optimizer step it is not known which module is the model: keep every call.
            state.counts["forward"] += 1
            state.calls.append(RootCall.capture(module, args, kwargs))
            state.call_probes("model_inputs", args, kwargs)
        self._stack.append((module, []))

    @guarded
    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward of a module has returned."""
        state = self.state
        if (state.grad_enabled or state.shadowing) and state.sink.is_first("forward", module):
            state.call_probes("forward", module, args, output)

    def exit(self, module: nn.Module) -> None:
        """A module's call is over."""
        # Sampling may begin within an outer module's call: then its end has no beginning.
        if self._stack and self._stack[-1][0] is module:
            self._stack.pop()

    @guarded
    def attention(self, logits: Logits) -> None:
        """Attention is computed."""
        state = self.state
        if not state.sink.is_first("attention", self.module):
            return
        with without_autocast():
            made, visible = logits()
            state.call_probes("attention", self.module, made, visible)

    @guarded
    def rectified(self, output: Tensor) -> None:
        """A ReLU was computed."""
        site = self._call_site("relu")
        if self.state.sink.is_first("relu", self.module, site):
            self.state.call_probes("rectified", self.module, output, site)

    def _normalized(self, given: Any, _: Any, dim: Any, *__: Any) -> None:
        if dim == 0 and self._stack and self.observes() and is_plain(given):
            self.over_dimension("normalize", given, dim)

    @guarded
    def over_dimension(self, function: str, given: Tensor, dim: int) -> None:
        """A softmax or normalisation runs over one dimension: that of the examples may be the first."""
        if not self._stack or dim not in (0, -given.dim()):
            return
        # What is made of parameters alone has no examples.
        if op_name(constant_factor(origin(given))[1]) not in ("nonetype", "accumulategrad"):
            self.state.call_probes("over_first_dimension", self.module, function, given)

    def _call_site(self, function: str) -> str:
        """Name the calls of ``function`` within the running module: ``""``, ``"relu2"``, ``"relu3"``, ..."""
        if not self._stack:
            return ""
        calls = self._stack[-1][1]
        calls.append(function)
        count = calls.count(function)
        return "" if count == 1 else f"{function}{count}"


def without_autocast() -> AbstractContextManager[Any]:
    """Return a context in which autocast is off."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
    return nullcontext()
