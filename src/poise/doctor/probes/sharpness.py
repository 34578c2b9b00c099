"""How close the optimizer is to the edge of its stability."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poise.doctor.probes.probe import Probe
from poise.doctor.tap.shadow import undisturbed
from poise.tools.clock import now

if TYPE_CHECKING:
    from poise.doctor.tap.tap import Tap
    from poise.doctor.tap.timeline import Timeline

_SHARE = 0.3  # of what the watch may spend
_SPREAD, _WIDEST = 1.25, 50  # steps between measurements grow by this factor, up to so many
_FIRST = 3.0  # steps that the first measurement is expected to take


class SharpnessProbe(Probe):
    """``sharpness`` of the sampled batch, the optimizer's ``edge``, and ``edge_ratio``, the first over the second.

    The sharpness is the largest eigenvalue of the Hessian of the very loss that is about to be differentiated, dropout
    and all; for adaptive optimizers that of the preconditioned Hessian. It is found on the graph that the script has
    just built, by one to three Hessian products, and is a lower bound. The edge is that of :func:`poise.dynamics.edge`
    at the learning rate of the step, raised where the script clips the gradients of the step. Above 1 the ratio says
    that a quadratic of this curvature would be left in growing swings.

    It takes its turn when the budget allows it, ever more rarely, and leaves the watch for good, with an event
    ``sharpness_off`` that says why, where the loss cannot be differentiated twice or a hook of the script would notice.

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, 2021.
        Gilmer et al., A loss curvature perspective on training instability in deep learning, 2021.
    """

    def __init__(self) -> None:
        # Here and not above: who only imports the doctor need not wait for the curvature.
        from poise.doctor.live_curvature import LiveCurvature

        self._curvature = LiveCurvature()
        self._off = False
        self._next = 1
        self._seconds = self._spent = 0.0
        self._measured: tuple[float, float, float] | None = None  # sharpness, edge, learning rate that the script set

    def before_backward(self, tap: Tap, root: Any) -> None:
        """Measure on the graph of the loss, before it is used up."""
        self._measured = self._measured if tap.interval.backwards > 1 else None
        if self._off or tap.interval.backwards > 1 or not tap.timelines:
            return
        timeline = next(iter(tap.timelines.values()))
        early = timeline.step < self._next and not tap.sampler.alarmed
        if early or not timeline.step or not _is_loss(root) or not self._affords(tap, timeline):
            return
        reason = _obstacle(tap, timeline)
        if reason:
            self._leave(tap, timeline, reason)
            return
        start = now()
        try:
            self._measure(tap, timeline, root)
        except ValueError:
            pass  # numbers that are not finite, an optimizer without a state, a loss of others: the next step may do
        except Exception as error:
            self._leave(tap, timeline, f"{type(error).__name__}: {error}".partition("\n")[0])
        seconds = (now() - start).busy
        self._seconds = 0.5 * (self._seconds + seconds) if self._seconds else seconds
        self._spent += seconds
        tap.sampler.leave_out(seconds)
        self._next = min(math.ceil(_SPREAD * timeline.step + 1), timeline.step + _WIDEST)

    def _affords(self, tap: Tap, timeline: Timeline) -> bool:
        cost = self._seconds or _FIRST * timeline.step_seconds
        return self._spent + cost <= _SHARE * tap.budget.granted and tap.budget.allows(cost)

    def _measure(self, tap: Tap, timeline: Timeline, root: Tensor) -> None:
        parameters = [p for p in timeline.parameters if p.requires_grad]
        with undisturbed(tap.names.roots):
            found = self._curvature.measure(root, parameters, timeline.optimizer)
        scaled = tap.interval.scaled
        scale = float(root.detach() / scaled[1]) if scaled is not None and scaled[0] == id(root) else 1.0
        sharpness, lr = found.sharpness / scale, _learning_rate(timeline)
        if math.isfinite(sharpness) and found.edge > 0 and lr > 0:
            self._measured = sharpness, found.edge, lr

    def after_step(self, tap: Tap, timeline: Timeline) -> None:
        """Record what was measured, at the learning rate that the step has really used."""
        if self._measured is None:
            return
        (sharpness, edge, lr), self._measured = self._measured, None
        sharpness *= tap.interval.backwards  # a part of the loss was seen: the optimizer gets the sum of all
        edge *= lr / max(float(timeline.lr), 1e-30)
        if tap.interval.clip is not None:
            norm, limit = tap.interval.clip
            edge *= max(1.0, float(norm) / limit) if limit > 0 and math.isfinite(float(norm)) else 1.0
        tap.emit(timeline, "sharpness", None, [sharpness])
        tap.emit(timeline, "edge", None, [edge])
        tap.emit(timeline, "edge_ratio", None, [sharpness / edge])

    def _leave(self, tap: Tap, timeline: Timeline, reason: str) -> None:
        self._off = True
        tap.event(timeline.step, "sharpness_off", {"reason": reason})


def _is_loss(root: Any) -> bool:
    return isinstance(root, Tensor) and root.numel() == 1 and root.requires_grad and bool(torch.isfinite(root.detach()))


def _learning_rate(timeline: Timeline) -> float:
    return max((float(group.get("lr", 0.0)) for group in timeline.optimizer.param_groups), default=0.0)


def _obstacle(tap: Tap, timeline: Timeline) -> str:
    """Return why a second backward pass through the graph would not do, or would be noticed; empty if it is well."""
    if tap.compiled:
        return "compiled code has no second derivative"
    if len(tap.timelines) > 1:
        return "several optimizers: which of them a loss belongs to is not known"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "in a distributed run other processes would have to take part"
    if tap.gradients_hooked or any(map(_has_backward_hooks, tap.names.roots)):
        return "hooks of the script on gradients would be called once more"
    if not all(isinstance(p, nn.Parameter) for p in timeline.parameters):
        return "the optimizer holds tensors that are no parameters"
    return ""


def _has_backward_hooks(root: nn.Module) -> bool:
    return any(m._backward_hooks or m._backward_pre_hooks for m in root.modules()) or any(
        p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in root.parameters()
    )
