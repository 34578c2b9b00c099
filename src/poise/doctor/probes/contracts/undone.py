"""Whether the updates of an optimizer last until its next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poise.doctor.probes.orphans import live_optimizers
from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_TENSORS, _IN_A_ROW, _STILL = 3, 5, 30


@dataclass
class _Kept:
    """A few parameters of an optimizer as they were just before its last step."""

    positions: list[int]
    values: list[Tensor] = field(default_factory=list)
    moved: bool = False  # whether that step changed them
    undone: int = 0  # updates in a row that were gone before the next step


class UndoneProbe(Probe):
    """Event ``updates_undone``: before each of several steps parameters are again what they were before the last one.

    Seen in five of the first steps in a row, and again after thirty; only where no other optimizer holds them: an inner
    loop that starts again at the same weights for each task undoes the updates of its optimizer on purpose.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._told: set[str] = set()

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare parameters with what they were before the last step."""
        kept = self._kept.get(timeline.prefix)
        if kept is None:
            kept = self._kept[timeline.prefix] = _Kept(_smallest(timeline))
        if kept.undone >= _IN_A_ROW:
            return
        tensors = [timeline.parameters[i] for i in kept.positions]
        kept.undone = kept.undone + 1 if kept.moved and all(map(torch.equal, tensors, kept.values)) else 0
        kept.values, kept.moved = [p.detach().clone() for p in tensors], False

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare them once more, much later."""
        kept = self._kept.get(timeline.prefix)
        if kept is None or timeline.step < _STILL:
            return
        del self._kept[timeline.prefix]
        tensors = [timeline.parameters[i] for i in kept.positions]
        if kept.undone < _IN_A_ROW or not all(map(torch.equal, tensors, kept.values)):
            return
        held = [
            sum(any(p is q for g in o.param_groups for q in g["params"]) for o in live_optimizers()) for p in tensors
        ]
        if max(held) == 1:
            facts = {"timeline": timeline.prefix, "names": [timeline.names[i] for i in kept.positions]}
            sink.event(sink.run_step, "updates_undone", {**facts, "steps": timeline.step})

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Note that the step has changed them."""
        kept = self._kept.get(timeline.prefix)
        if kept is not None and timeline.step < _STILL:
            tensors = [timeline.parameters[i] for i in kept.positions]
            kept.moved = bool(tensors) and not any(map(torch.equal, tensors, kept.values))


def _smallest(timeline: Timeline) -> list[int]:
    trained = [i for i, p in enumerate(timeline.parameters) if p.requires_grad and p.grad is not None and p.numel()]
    return sorted(trained, key=lambda i: timeline.parameters[i].numel())[:_TENSORS]
