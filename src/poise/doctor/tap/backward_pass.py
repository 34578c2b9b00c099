"""A backward pass that is about to begin, for a probe that differentiates its loss itself."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn

from poise.doctor.budget import Budget
from poise.doctor.tap.state import TapState
from poise.doctor.tap.timeline import Timeline


class BackwardPass:
    """A backward pass that is about to begin.

    Args:
        root: what will be differentiated.
        state: of the tap.
    """

    def __init__(self, root: Any, state: TapState) -> None:
        self.root = root
        self._state = state

    @property
    def timeline(self) -> Timeline | None:
        """Of the first optimizer; ``None`` before any has stepped."""
        return next(iter(self._state.timelines.values()), None)

    @property
    def calls_per_backward(self) -> float:
        """Calls of the model for each backward pass so far."""
        counts = self._state.counts
        return counts["forward"] / max(1, counts["backward"])

    @property
    def budget(self) -> Budget:
        """What may be spent."""
        return self._state.budget

    @property
    def alarmed(self) -> bool:
        """Whether something stood out within the last steps."""
        return self._state.sampler.alarmed

    def leave_out(self, seconds: float) -> None:
        """Do not count ``seconds`` as part of what a sampled step costs."""
        self._state.sampler.leave_out(seconds)

    def obstacle(self) -> str:
        """Return why a second backward pass through the graph is impossible or has effects; empty if it is fine."""
        state = self._state
        if state.compiled:
            return "compiled code has no second derivative"
        if len(state.timelines) > 1:
            return "several optimizers: which of them a loss belongs to is not known"
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return "in a distributed run other processes would have to take part"
        if state.gradients_hooked or any(map(_has_backward_hooks, state.names.roots)) or _any_retained_gradient():
            return "hooks of the script on gradients would be called once more"
        if not all(isinstance(p, nn.Parameter) for t in state.timelines.values() for p in t.parameters):
            return "the optimizer holds tensors that are no parameters"
        return ""


def _has_backward_hooks(root: nn.Module) -> bool:
    return any(m._backward_hooks or m._backward_pre_hooks for m in root.modules()) or any(
        p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in root.parameters()
    )


def _any_retained_gradient() -> bool:
    """Return whether a tensor that is no leaf keeps its gradient (``retain_grad``): the pass would add to it."""
    # The method is compiled and cannot be hooked; a tensor without references has no gradient that anyone could read.
    return any(type(o) is Tensor and o.retains_grad for o in gc.get_objects())
