"""The hooks at which a probe may measure a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.loss_call import LossCall
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline


class Probe:
    """Turns what the tap observes on a sampled step into signals; every hook does nothing unless overridden.

    A probe hands numbers to ``sink.observe(signal, value, module)`` before the optimizer step is known, and to
    ``sink.emit(timeline, signal, layers, values)`` afterwards. Values may be tensors of one element on any device: a
    probe never waits for a device.
    """

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Measure the output of ``module``."""

    def rectified(self, sink: Sink, module: nn.Module | None, output: Tensor, site: str) -> None:
        """Measure the output of a ReLU in ``module``; ``site`` distinguishes several within one module."""

    def over_first_dimension(self, sink: Sink, module: nn.Module | None, function: str, given: Tensor) -> None:
        """Examine what a softmax or normalisation in ``module`` runs over dimension 0 of."""

    def attention(self, sink: Sink, module: nn.Module | None, logits: Tensor, visible: Tensor | None) -> None:
        """Measure attention logits of one sample, ``"heads query key"``; ``visible``: which keys may be seen."""

    def loss_inputs(self, sink: Sink, logits: Tensor, target: Tensor, ignore_index: int) -> None:
        """Measure what cross-entropy is given."""

    def loss_called(self, sink: Sink, call: LossCall) -> None:
        """Examine the arguments of a loss function, at its first calls and ever more rarely, sampled step or not.

        It may ask a device for a number: it is called a few dozen times in a run.
        """

    def embeddings(self, sink: Sink, vectors: Tensor) -> None:
        """Measure vectors, ``"batch feature"``, of which only the direction counts."""

    def learned_scale(self, sink: Sink, scale: Tensor, residual: Tensor) -> None:
        """Measure the standard deviations of a Gaussian likelihood that are learned, and what they are of."""

    def early_inputs(self, sink: Sink, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Examine the first 16 batches that a root module is called with, sampled or not."""

    def model_inputs(self, sink: Sink, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the batch a root module is called with."""

    def loss_root(self, sink: Sink, backward: BackwardPass) -> None:
        """Read the graph of a loss, at the first 8 backward passes and ever more rarely, and on sampled steps."""

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Measure what is about to be differentiated, while its graph exists."""

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Examine the first 12 steps of an optimizer, just before each, sampled or not."""

    def first_step(self, sink: Sink, timeline: Timeline) -> None:
        """Describe an optimizer that is about to take its first step, sampled or not."""

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Measure the gradients, just before an optimizer step."""

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Measure parameters and optimizer state, just after the step."""


def hooks_of(probes: Sequence[Probe]) -> dict[str, list[Callable[..., None]]]:
    """Return, for each hook, the methods of the probes that override it: most override one or two."""
    names = [name for name in vars(Probe) if not name.startswith("_")]
    return {
        name: [getattr(p, name) for p in probes if getattr(type(p), name) is not getattr(Probe, name)] for name in names
    }
