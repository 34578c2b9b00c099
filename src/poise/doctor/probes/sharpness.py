"""How close the optimizer is to the edge of its stability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.shadow import undisturbed
from poise.tools.clock import now

if TYPE_CHECKING:
    from poise.doctor.budget import Budget
    from poise.doctor.tap.backward_pass import BackwardPass
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_FRACTION = 0.3  # of what the watch may spend
_SPREAD, _WIDEST = 1.25, 50  # steps between measurements grow by this factor, up to so many
_FIRST = 3.0  # steps that the first measurement is expected to take


class SharpnessProbe(Probe):
    """``sharpness`` of the sampled batch, the optimizer's ``edge``, and ``edge_ratio``, the first over the second.

    The sharpness is the largest eigenvalue of the Hessian of the very loss that is about to be differentiated, with its
    dropout masks; for adaptive optimizers that of the preconditioned Hessian. It is found on the graph that the script
    has just built, by one to three Hessian products, and is a lower bound. The edge is that of
    :func:`poise.dynamics.edge` at the learning rate of the step, raised where the script clips the gradients of the
    step. If the ratio is above 1, the optimizer would oscillate with growing amplitude on a quadratic of this
    curvature.

    It measures when the budget allows it, at growing intervals. It is switched off for the rest of the run, with an
    event ``sharpness_off`` that gives the reason, where the loss cannot be differentiated twice or a hook of the script
    would be called once more.

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, 2021.
        Gilmer et al., A loss curvature perspective on training instability in deep learning, 2021.
    """

    def __init__(self) -> None:
        # Imported here, so that importing the doctor does not load the curvature.
        from poise.doctor.live_curvature import LiveCurvature

        self._curvature = LiveCurvature()
        self._off = False
        self._next = 1
        self._seconds = self._spent = 0.0
        self._measured: tuple[float, float, float] | None = None  # sharpness, edge, learning rate that the script set

    def before_backward(self, sink: Sink, backward: BackwardPass) -> None:
        """Measure on the graph of the loss, before it is used up."""
        root, timeline = backward.root, backward.timeline
        self._measured = self._measured if sink.interval.backwards > 1 else None
        if self._off or sink.interval.backwards > 1 or timeline is None:
            return
        early = timeline.step < self._next and not backward.alarmed
        if early or not timeline.step or not _is_loss(root) or not self._is_affordable(backward.budget, timeline):
            return
        reason = backward.obstacle()
        if reason:
            self._switch_off(sink, timeline, reason)
            return
        start = now()
        try:
            self._measure(sink, timeline, root)
        except ValueError:
            pass  # not finite, an optimizer without a state, the loss of another optimizer: a later step may work
        except Exception as error:
            self._switch_off(sink, timeline, f"{type(error).__name__}: {error}".partition("\n")[0])
        seconds = (now() - start).busy
        self._seconds = 0.5 * (self._seconds + seconds) if self._seconds else seconds
        self._spent += seconds
        backward.leave_out(seconds)
        self._next = min(math.ceil(_SPREAD * timeline.step + 1), timeline.step + _WIDEST)

    def _is_affordable(self, budget: Budget, timeline: Timeline) -> bool:
        cost = self._seconds or _FIRST * timeline.step_seconds
        return self._spent + cost <= _FRACTION * budget.granted and budget.allows(cost)

    def _measure(self, sink: Sink, timeline: Timeline, root: Tensor) -> None:
        parameters = [p for p in timeline.parameters if p.requires_grad]
        with undisturbed(sink.names.roots):
            found = self._curvature.measure(root, parameters, timeline.optimizer)
        scaled = sink.interval.scaled
        scale = float(root.detach() / scaled[1]) if scaled is not None and scaled[0] == id(root) else 1.0
        sharpness, lr = found.sharpness / scale, _learning_rate(timeline)
        if math.isfinite(sharpness) and found.edge > 0 and lr > 0:
            self._measured = sharpness, found.edge, lr

    def after_step(self, sink: Sink, timeline: Timeline) -> None:
        """Record what was measured, at the learning rate that the step has really used."""
        if self._measured is None:
            return
        (sharpness, edge, lr), self._measured = self._measured, None
        sharpness *= (
            sink.interval.backwards
        )  # only one of several losses was seen: the optimizer gets the gradient of their sum
        edge *= lr / max(float(timeline.lr), 1e-30)
        if sink.interval.clip is not None:
            norm, limit = sink.interval.clip
            edge *= max(1.0, float(norm) / limit) if limit > 0 and math.isfinite(float(norm)) else 1.0
        sink.emit(timeline, "sharpness", None, [sharpness])
        sink.emit(timeline, "edge", None, [edge])
        sink.emit(timeline, "edge_ratio", None, [sharpness / edge])

    def _switch_off(self, sink: Sink, timeline: Timeline, reason: str) -> None:
        self._off = True
        sink.event(timeline.step, "sharpness_off", {"reason": reason})


def _is_loss(root: Any) -> bool:
    return isinstance(root, Tensor) and root.numel() == 1 and root.requires_grad and bool(torch.isfinite(root.detach()))


def _learning_rate(timeline: Timeline) -> float:
    return max((float(group.get("lr", 0.0)) for group in timeline.optimizer.param_groups), default=0.0)
