"""Gradients that are reset between the backward pass and the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_STEPS = 3


class LostGradientProbe(Probe):
    """Event ``gradients_lost``: the first three steps found no gradient, although backward passes had run."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def early_step(self, sink: Sink, timeline: Timeline) -> None:
        """Look whether anything is left of the backward passes since the last step."""
        done = self._steps.setdefault(timeline.prefix, 0)
        if timeline.step != done or done >= _STEPS or not sink.interval.backwards:
            return
        gradients = [p.grad for p in timeline.parameters if p.grad is not None]
        if any(bool(torch.count_nonzero(g.coalesce().values() if g.is_sparse else g)) for g in gradients):
            return
        self._steps[timeline.prefix] = done + 1
        if done + 1 == _STEPS and sink.interval.resets:
            payload = {"timeline": timeline.prefix, "source": sink.interval.resets[-1]}
            sink.event(timeline.step, "gradients_lost", payload)
