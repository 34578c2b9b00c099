"""Losses of several backward passes that one step adds up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import constant_factor, parent
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_DIVIDED = 0.75  # a loss that is multiplied by less was meant to be a part of a mean


class AccumulationProbe(Probe):
    """Event ``accumulation_not_divided``: one line calls ``backward()`` several times for a step, undivided."""

    def __init__(self) -> None:
        self._told = False
        self._lines: list[tuple[str, bool]] = []  # of the backward passes since the last step; whether divided

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Note where the pass begins, and whether its root was divided."""
        root = backward.root
        if self._told or not isinstance(root, Tensor):
            return
        node, scaled = root.grad_fn, sink.interval.scaled
        if scaled is not None and scaled[0] == id(root):
            node = parent(node)
        self._lines.append((user_line(), constant_factor(node)[0] < _DIVIDED))

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Tell once, if every pass of a step came from one line and none was divided."""
        lines, self._lines = self._lines, []
        if self._told or len(lines) < 2 or len({line for line, _ in lines}) > 1 or any(divided for _, divided in lines):
            return
        if len(lines) != sink.interval.backwards:
            return  # not all of them were seen
        self._told = True
        payload = {
            "timeline": timeline.prefix,
            "count": len(lines),
            "source": lines[0][0],
            # An optimizer that divides by the size of gradients, and a clipped norm, do not see the factor.
            "absorbed": "betas" in timeline.optimizer.defaults or sink.interval.clip is not None,
        }
        sink.event(timeline.step, "accumulation_not_divided", payload)
