"""What a step really did to the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.probes.segments import sample, segments_of

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline


class UpdateProbe(Probe):
    """Size of the updates, from the actual difference of the parameters, decay and remedies included.

    ``param_norm[p]``, ``update_ratio[p]`` = ||difference|| / ||before||, ``update_ratio`` over all, and for parameters
    in half precision ``update_lost[p]``: the fraction of coordinates with a gradient whose value did not change.
    """

    def __init__(self) -> None:
        self._before: Tensor | None = None
        self._parameters: list[int] = []

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Keep a copy of the parameters, or of some of their coordinates."""
        shown = timeline.shown_of(range(len(timeline.parameters)))
        device = timeline.parameters[0].device  # a model spread over devices is seen on its first one
        self._parameters = [i for i in shown if timeline.parameters[i].device == device]
        parameters = [timeline.parameters[i] for i in self._parameters]
        self._segments = segments_of(parameters)
        self._before = self._segments.flatten(parameters)

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare."""
        if self._before is None:
            return
        before, self._before = self._before, None
        segments, names = self._segments, [timeline.names[i] for i in self._parameters]
        difference = segments.flatten([timeline.parameters[i] for i in self._parameters]) - before
        updates, norms = segments.norm(difference), segments.norm(before)
        sink.emit(timeline, "param_norm", names, norms)
        # A fresh bias of zeros has no relative update: it is measured against what it becomes.
        ratios = updates / torch.maximum(norms, updates).clamp_min(torch.finfo(torch.float32).tiny)
        sink.emit(timeline, "update_ratio", names, ratios)
        total = torch.linalg.vector_norm(updates) / torch.linalg.vector_norm(norms).clamp_min(1e-30)
        sink.emit(timeline, "update_ratio", None, [total])
        self._emit_lost(sink, timeline, difference.split(segments.sizes))

    def _emit_lost(self, sink: Sink, timeline: Timeline, differences: tuple[Tensor, ...]) -> None:
        names, values = [], []
        for i, difference in zip(self._parameters, differences, strict=True):
            parameter = timeline.parameters[i]
            if parameter.dtype not in (torch.float16, torch.bfloat16) or parameter.grad is None:
                continue
            moved = sample(parameter.grad).reshape(-1) != 0
            names.append(timeline.names[i])
            values.append(((difference == 0) & moved).sum() / moved.sum().clamp_min(1))
        sink.emit(timeline, "update_lost", names, values)
