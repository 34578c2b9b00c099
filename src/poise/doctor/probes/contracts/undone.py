"""Whether the updates of an optimizer last until its next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poise.doctor.probes.orphans import live_optimizers
from poise.doctor.probes.probe import Probe
from poise.doctor.shards import local_shard
from poise.doctor.tap.plain import is_capturing

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

    def of(self, timeline: Timeline) -> list[Tensor]:
        """Return them as they are now; of what is spread over processes, this one's part."""
        return [local_shard(timeline.parameters[i].detach()) for i in self.positions]


class UndoneProbe(Probe):
    """Event ``updates_undone``: before each of several steps parameters are again what they were before the last one.

    Seen in five of the first steps in a row, and again after thirty; only where no other optimizer holds them: an inner
    loop that starts again at the same weights for each task undoes the updates of its optimizer on purpose.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare parameters with what they were before the last step."""
        kept = self._kept.get(timeline.prefix)
        if kept is None:
            kept = self._kept[timeline.prefix] = _Kept(_smallest(timeline))
        if kept.undone >= _IN_A_ROW or is_capturing():
            return
        tensors = kept.of(timeline)
        kept.undone = kept.undone + 1 if kept.moved and all(map(_are_equal, tensors, kept.values)) else 0
        kept.values, kept.moved = [t.clone() for t in tensors], False

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare them once more, much later."""
        kept = self._kept.get(timeline.prefix)
        if kept is None or timeline.step < _STILL or is_capturing():
            return
        del self._kept[timeline.prefix]
        tensors = kept.of(timeline)
        if kept.undone < _IN_A_ROW or not all(map(_are_equal, tensors, kept.values)):
            return
        held = [{id(p) for group in o.param_groups for p in group["params"]} for o in live_optimizers()]
        if all(sum(id(timeline.parameters[i]) in ids for ids in held) == 1 for i in kept.positions):
            facts = {"timeline": timeline.prefix, "names": [timeline.names[i] for i in kept.positions]}
            sink.event(sink.run_step, "updates_undone", {**facts, "steps": timeline.step})

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Note that the step has changed them."""
        kept = self._kept.get(timeline.prefix)
        if kept is not None and timeline.step < _STILL and not is_capturing():
            tensors = kept.of(timeline)
            kept.moved = bool(tensors) and not any(map(_are_equal, tensors, kept.values))


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


def _smallest(timeline: Timeline) -> list[int]:
    trained = [i for i, p in enumerate(timeline.parameters) if p.requires_grad and p.grad is not None and p.numel()]
    return sorted(trained, key=lambda i: timeline.parameters[i].numel())[:_TENSORS]
