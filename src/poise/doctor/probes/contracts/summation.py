"""Losses that are sums over a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.graph import constant_factor, op_name, output_shape, parent, saved
from poise.doctor.tap.user_line import user_line

if TYPE_CHECKING:
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_SUM, _MANY = 2, 8  # torch's number for reduction="sum"; a sum of fewer is hardly another scale
_DIVIDED = 0.75


class SummationProbe(Probe):
    """Event ``loss_is_sum``: the first loss is a sum over its batch, undivided, and the optimizer feels its size."""

    def __init__(self) -> None:
        self._first = True
        self._found: dict[str, Any] | None = None

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Look how the first loss was reduced to one number."""
        if self._first and isinstance(backward.root, Tensor):
            self._first = False
            root, scaled = backward.root.grad_fn, sink.interval.scaled
            factor, node = constant_factor(
                parent(root) if scaled is not None and scaled[0] == id(backward.root) else root
            )
            count = _summed(node)
            if factor >= _DIVIDED and count >= _MANY:
                self._found = {"count": count, "source": user_line()}

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Tell at the first step, when the optimizer is known."""
        found, self._found = self._found, None
        # Adam divides by the size of gradients, and clipping does away with it.
        if found is not None and "betas" not in timeline.optimizer.defaults and sink.interval.clip is None:
            sink.event(timeline.step, "loss_is_sum", {"timeline": timeline.prefix, **found})


def _summed(node: Any) -> int:
    """Return over how many numbers a node sums; 0 if it does something else."""
    if node is None:
        return 0
    name = op_name(node)
    if name == "sum" or saved(node, "reduction") == _SUM:
        before = parent(node)
        shape = output_shape(before) if before is not None else None
        if not shape:
            return 0
        return shape[0] if name.startswith("nll") else math.prod(shape)
    return 0
