"""Hooks that tell whether the loss measures progress: targets that a copy of the model makes, policies that act."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributions import Bernoulli, Beta, Categorical, Distribution, Normal

from poise.doctor.tap.copies import copies_of_trained
from poise.doctor.tap.discovery import live_modules
from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.policy_terms import is_telling, normalised_entropy
from poise.doctor.tap.state import TapState

_INTERVALS = 3  # between steps, in each of which a copy must have been called


class TargetHooks:
    """Notes, once each, two facts by which a loss is no measure of progress.

    Event ``bootstrapped``: a copy of the trained model (see :mod:`poise.doctor.tap.copies`) is called without gradients
    between three successive steps of an optimizer, so that what it returns is part of the targets: temporal
    differences, self-distillation, momentum contrast. Event ``policy_gradient``: the log-probability of a distribution
    of ``torch.distributions`` is differentiated, and distributions of its class have drawn samples without a
    gradient.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._drawn: set[type] = set()
        self._copies: list[nn.Module] = []
        self._calls: dict[int, list[int]] = {}  # by copy: the steps, of all optimizers, before which it was called
        self._calling = FunctionHook(nn.Module._call_impl, before=self._module_called)
        self._calling.failed = state.fail
        state.at_fault.append(self.close)

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        samples = (Bernoulli.sample, Categorical.sample, Normal.sample, Distribution.sample)
        logarithms = (Bernoulli.log_prob, Beta.log_prob, Categorical.log_prob, Normal.log_prob)
        return [
            *(FunctionHook(function, after=self._sampled) for function in samples),
            *(FunctionHook(function, after=self._log_prob) for function in logarithms),
        ]

    def close(self) -> None:
        """The watch ends."""
        self._calling.remove()

    # ---- copies ----------------------------------------------------------------------------------------------------

    def find_copies(self) -> None:
        """Look for copies of what is trained; an optimizer is about to take its first step."""
        state = self.state
        candidates = state.roots if state.given_roots is not None else live_modules()
        copies = copies_of_trained(candidates, state.sink.optimized)
        # Those known before have drifted from their originals since.
        copies += [c for c in self._copies if all(c is not known for known in copies) and not self._is_trained(c)]
        self._copies = copies
        state.sink.copied = {id(p) for copy in copies for p in copy.parameters()}
        self._calls = {id(copy): self._calls.get(id(copy), []) for copy in copies}
        if copies and "bootstrapped" not in state.explained:
            self._calling.install()
        else:
            self._calling.remove()

    def _is_trained(self, module: nn.Module) -> bool:
        return any(id(p) in self.state.sink.optimized for p in module.parameters())

    def _module_called(self, module: nn.Module, *_: Any) -> None:
        if id(module) in self._calls:
            self._copy_called(module)

    @guarded
    def _copy_called(self, copy: nn.Module) -> None:
        state = self.state
        if state.shadowing or (state.grad_enabled and any(p.requires_grad for p in copy.parameters())):
            return
        calls, now = self._calls[id(copy)], state.counts["step"]
        if not calls or calls[-1] != now:
            calls.append(now)
        span = _INTERVALS * max(1, len(state.timelines))  # each optimizer has updates of its own
        if len(calls) >= _INTERVALS and calls[-_INTERVALS] > now - span:
            state.explained.add("bootstrapped")
            state.sink.event(state.step, "bootstrapped", {"copy": type(copy).__name__})
            self._calling.remove()

    # ---- policies --------------------------------------------------------------------------------------------------

    def _sampled(self, value: Any, distribution: Any, *_: Any) -> Any:
        self._drawn.add(type(distribution))
        return value

    def _log_prob(self, logarithm: Any, distribution: Any, *_: Any) -> Any:
        if type(distribution) in self._drawn and "policy_gradient" not in self.state.explained:
            self._acted(logarithm, distribution)
        if self.state.sampling and isinstance(distribution, Categorical):
            self._observe_entropy(logarithm, distribution)
        return logarithm

    @guarded
    def _observe_entropy(self, logarithm: Any, distribution: Categorical) -> None:
        sink = self.state.sink
        logits = distribution.logits.detach()
        if logarithm.requires_grad and is_telling(logits) and sink.is_first("entropy", None):
            sink.observe("policy_entropy", normalised_entropy(logits, is_logarithm=True))

    @guarded
    def _acted(self, logarithm: Any, distribution: Any) -> None:
        if isinstance(logarithm, Tensor) and logarithm.requires_grad:
            state = self.state
            state.explained.add("policy_gradient")
            if state.sink.policy:
                return
            state.sink.policy = True
            state.sink.event(state.step, "policy_gradient", {"distribution": type(distribution).__name__})
