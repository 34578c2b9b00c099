"""Modules left in the wrong mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.modal import MODAL

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline


class ModeProbe(Probe):
    """``eval_mode``: fraction of the BatchNorm and Dropout modules that ran a training forward in eval mode."""

    def forward(self, sink: Sink, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note the mode of a module whose behaviour depends on it."""
        # A frozen BatchNorm is in eval mode on purpose.
        if isinstance(module, MODAL) and all(p.requires_grad for p in module.parameters(recurse=False)):
            sink.interval.modes.append(not module.training)

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Record the fraction."""
        modes = sink.interval.modes
        if modes:
            sink.emit(timeline, "eval_mode", None, [sum(modes) / len(modes)])
