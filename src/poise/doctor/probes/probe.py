"""The moments of a training step at which a probe may look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from poise.doctor.tap.tap import Tap
    from poise.doctor.tap.timeline import Timeline


class Probe:
    """Turns what the tap sees on a sampled step into signals; every moment is a no-op unless overridden.

    A probe hands numbers to ``tap.observe(signal, value, module)`` before the optimizer step is known, and to
    ``tap.emit(timeline, signal, layers, values)`` afterwards. Values may be tensors of one element on any device: a
    probe never asks a device for a number.
    """

    def forward(self, tap: Tap, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Look at the output of ``module``."""

    def rectified(self, tap: Tap, output: Tensor, site: str) -> None:
        """Look at the output of a ReLU; ``site`` tells several within one module apart."""

    def attention(self, tap: Tap, logits: Tensor, visible: Tensor | None) -> None:
        """Look at attention logits of one sample, ``"heads query key"``; ``visible``: which keys may be seen."""

    def loss_inputs(self, tap: Tap, logits: Tensor, target: Tensor, ignore_index: int) -> None:
        """Look at what cross-entropy is given."""

    def model_inputs(self, tap: Tap, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the batch a root module is called with."""

    def before_backward(self, tap: Tap, root: Any) -> None:
        """Look at what is about to be differentiated, its graph still there."""

    def before_step(self, tap: Tap, timeline: Timeline) -> None:
        """Look at the gradients, just before an optimizer step."""

    def after_step(self, tap: Tap, timeline: Timeline) -> None:
        """Look at parameters and optimizer state, just after the step."""


def lookers(probes: Sequence[Probe]) -> dict[str, list[Callable[..., None]]]:
    """Return, for each moment, what those probes do that look at it: most look at one or two."""
    moments = [name for name in vars(Probe) if not name.startswith("_")]
    return {
        name: [getattr(p, name) for p in probes if getattr(type(p), name) is not getattr(Probe, name)]
        for name in moments
    }
