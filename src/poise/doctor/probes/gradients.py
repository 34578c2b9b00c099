"""Gradient norms: global and per parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.doctor.probes.probe import Probe

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline


class GradientProbe(Probe):
    """``grad_norm[parameter]``: what each parameter's gradient was before clipping.

    (The tap itself measures the global norm, which it needs on every step.)
    """

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Record the norms that the tap took before the step."""
        norms, total, norm = timeline.layer_norms, timeline.norm_now, timeline.grad_norm
        if norms is None or total is None or norm is None:
            return
        clipped = sink.interval.clip is not None
        shown = timeline.shown_of(timeline.with_gradient)
        values = [norms[i] * (norm / total) if clipped else norms[i] for i in shown]
        sink.emit(timeline, "grad_norm", [timeline.names[timeline.with_gradient[i]] for i in shown], values)
