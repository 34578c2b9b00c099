"""Gradients that a backward pass adds to because they were not reset."""

from __future__ import annotations

from torch import Tensor

from poise.doctor.tap.timeline import Timeline


def note_leftover_gradients(timeline: Timeline) -> None:
    """Note, as a backward pass begins, whether gradients of the last step are still there.

    Gradients that were zeroed in place count as reset. The smallest gradient is enough for the check: an accumulated
    one is exactly zero nowhere else.
    """
    if timeline.gradients_reset or not timeline.parameters:
        return
    gradients = [p.grad for p in timeline.parameters if p.grad is not None]
    if not gradients:
        timeline.gradients_reset = True
    elif not gradients[0].is_sparse:
        stale = (min(gradients, key=Tensor.numel) != 0).any()
        timeline.stale = stale if timeline.stale is None else timeline.stale & stale
