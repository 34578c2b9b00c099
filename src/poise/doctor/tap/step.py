"""Hooks of optimizer steps: each optimizer's own count of them, and all that is recorded of a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from poise.doctor.tap.backward import BackwardHooks
from poise.doctor.tap.discovery import find_roots, is_compiled, name_model
from poise.doctor.tap.environments import Environments
from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.gradient_norms import measure_gradients
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.interval import Interval
from poise.doctor.tap.nonfinite import explain_nonfinite_backward
from poise.doctor.tap.plain import is_compiling
from poise.doctor.tap.shadow import shadow
from poise.doctor.tap.state import FIRST_STEPS, TapState
from poise.doctor.tap.targets import TargetHooks
from poise.doctor.tap.timeline import Timeline

_ROWS, _FLUSH_SECONDS = 64, 0.4  # rows of scalars that wait at most, and for how long


class StepHooks:
    """Follows optimizers from step to step, and plans which steps are sampled.

    Args:
        state: of the tap.
        forward: observes modules while a sampled step runs.
        backward: gets the loss from which on a spike is possible.
        targets: gets new optimizers.

    Attributes:
        between_steps: called after every step, if set.
    """

    def __init__(self, state: TapState, forward: ForwardHooks, backward: BackwardHooks, targets: TargetHooks) -> None:
        self.state = state
        self.between_steps: Callable[[], None] | None = None
        self._forward, self._backward, self._targets = forward, backward, targets
        self._environments = Environments(state)
        self._can_shadow = True
        self._flushed = 0.0

    def register(self, stack: ExitStack) -> None:
        """Register the global optimizer hooks until ``stack`` closes."""
        stack.callback(torch_optimizer.register_optimizer_step_pre_hook(self.before).remove)
        stack.callback(torch_optimizer.register_optimizer_step_post_hook(self.after).remove)

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Act before any optimizer's step."""
        if is_compiling():
            return
        if self.state.thread is None and self.state.follows(optimizer):
            self.state.follow_this_thread()  # before anything else: another thread may be about to step, too
        self._before_step(optimizer)
        treatment = self.state.treatment
        if treatment.remedies:
            treatment.before_step(optimizer, self.state.interval)
            self._treated(optimizer)

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Act after any optimizer's step."""
        if is_compiling():
            return
        treatment = self.state.treatment
        if treatment.acting:
            treatment.after_step(optimizer)
        self._after_step(optimizer)
        if self.between_steps is not None:
            self._step_over()

    @guarded
    def _before_step(self, optimizer: Optimizer) -> None:
        """An optimizer step begins; the gradients are final unless the optimizer takes a closure."""
        state = self.state
        if state.stepping is not None and state.stepping.optimizer is not optimizer:
            return  # an optimizer inside another one (SAM, Lookahead): the outer step is the step
        timeline = state.timelines.get(id(optimizer))
        if timeline is None:
            if not state.follows(optimizer):
                return
            timeline = self._new_timeline(optimizer)
        state.stepping = timeline
        timeline.sampled = state.sampler.sampling or state.promoted
        timeline.lr = _learning_rate(optimizer)
        self._measure_gradients(timeline)
        self._environments.before_step()
        if timeline.step < FIRST_STEPS:
            state.call_probes("early_step", timeline)
        timeline.sampled = timeline.sampled or state.promoted
        if timeline.sampled:
            if state.compiled:
                self._shadow_forward()
            state.call_probes("before_step", timeline)

    @guarded
    def _treated(self, optimizer: Optimizer) -> None:
        """The remedies have acted: note the learning rate that the step will really use."""
        stepping = self.state.stepping
        if stepping is not None and stepping.optimizer is optimizer:
            stepping.lr = _learning_rate(optimizer)

    @guarded
    def _after_step(self, optimizer: Optimizer) -> None:
        """The optimizer step is done."""
        state = self.state
        timeline = state.stepping
        if timeline is None or timeline.optimizer is not optimizer:
            return
        state.stepping = None
        if timeline.grad_norm is None and timeline.norm_due:  # a closure made the gradients, inside the step
            self._measure_gradients(timeline)
        if timeline.stale is not None:
            # A backward pass of another network may have run through these parameters: what counts is whether
            # gradients were reset at any time between two steps.
            stale = timeline.stale & (not timeline.gradients_reset)
            state.sink.emit(timeline, "stale_gradient", None, [stale])
        if timeline.sampled:
            state.call_probes("after_step", timeline)
            state.sink.flush_observations(timeline)
        self._end_step(timeline)

    @guarded
    def step_skipped(self, optimizer: Optimizer, scale: Tensor) -> None:
        """A GradScaler found infinities and left the optimizer step out."""
        state = self.state
        if not state.follows(optimizer):
            return
        timeline = state.timelines.get(id(optimizer)) or self._new_timeline(optimizer)
        timeline.sampled = state.sampling
        timeline.grad_norm, timeline.with_gradient = None, []
        if timeline.sampled:
            state.sink.flush_observations(timeline)
        self._end_step(timeline, (scale, 1.0))

    @guarded
    def step_scaled(self, optimizer: Optimizer, scale: Tensor) -> None:
        """A GradScaler let the optimizer step happen (its row is the last one)."""
        timeline = self.state.timelines.get(id(optimizer))
        if timeline is not None:
            timeline.last_amp(scale)

    @guarded
    def flush(self) -> None:
        """Hand over what waits; the watch ends."""
        self._environments.close()
        sampler = self.state.sampler
        if sampler.left_out and not self.state.off:
            self.state.sink.event(self.state.step, "samples", {"taken": sampler.taken, "left_out": sampler.left_out})
        if self.state.timelines:
            self._flush(time.perf_counter())

    # ---- the model -------------------------------------------------------------------------------------------------

    def adopt(self, roots: list[nn.Module]) -> None:
        """Take ``roots`` for the models, as the script holds them (DDP and compile wrappers not removed)."""
        self.state.roots = roots
        self.state.sink.names = name_model(roots)
        if any(is_compiled(root) for root in roots):
            self.use_shadow_forwards()

    def use_shadow_forwards(self) -> None:
        """Part of the model is compiled: its modules are not observed; sampled steps are repeated eagerly."""
        state = self.state
        if not state.compiled:
            state.compiled = True
            self._forward.stop()
            state.sink.event(state.step, "compiled", {"mode": "shadow forward"})

    def _new_timeline(self, optimizer: Optimizer) -> Timeline:
        state = self.state
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if state.given_roots is not None:
            if not state.roots:
                self.adopt(list(state.given_roots))
        elif any(id(p) not in state.names.parameters for p in parameters):
            found = find_roots(parameters)
            self.adopt([*state.roots, *(r for r in found if not any(r is known for known in state.roots))])
        names = [state.names.parameters.get(id(p), f"parameter.{i}") for i, p in enumerate(parameters)]
        index = len(state.timelines)
        if not index:
            state.budget.start()
        timeline = Timeline(optimizer, f"opt{index}/" if index else "", parameters, names)
        state.timelines[id(optimizer)] = timeline
        state.sink.optimized.update(map(id, parameters))
        state.sampler.expect(id(optimizer))
        state.call_probes("first_step", timeline)
        self._targets.find_copies()
        return timeline

    def _shadow_forward(self) -> None:
        """Run the model once more, eagerly, for the probes; the model does not change."""
        state = self.state
        if not self._can_shadow:
            return
        try:
            for call in state.calls:
                with shadow(call) as forward, self._forward.watching():
                    forward()
        except Exception as error:  # then only the optimizer's signals are recorded
            self._can_shadow = False
            state.sink.event(state.step, "compiled", {"mode": "optimizer signals only", "error": str(error)})

    # ---- gradients -------------------------------------------------------------------------------------------------

    def _measure_gradients(self, timeline: Timeline) -> None:
        timeline.grad_norm, timeline.layer_norms = None, None
        if self.state.interval.backwards and (timeline.norm_due or not self._losses_are_finite()):
            measure_gradients(timeline, self.state.interval.clip)
            if isinstance(timeline.grad_norm, float):
                self._examine_norm(timeline, timeline.grad_norm)

    def _examine_norm(self, timeline: Timeline, norm: float) -> None:
        state = self.state
        if not math.isfinite(norm):
            if self._losses_are_finite():
                forward = self._forward
                state.explain("nonfinite_backward", lambda: explain_nonfinite_backward(state, forward, timeline))
            return
        if timeline.norm_spiked(norm):
            state.trigger()
        timeline.recent_norms.append(norm)

    def _losses_are_finite(self) -> bool:
        return all(math.isfinite(loss) for loss in self.state.interval.losses if isinstance(loss, float))

    # ---- the end of a step -----------------------------------------------------------------------------------------

    def _end_step(self, timeline: Timeline, amp: tuple[float | Tensor, float] | None = None) -> None:
        state = self.state
        now = time.perf_counter()
        seconds = now - timeline.ended
        timeline.ended = now
        timeline.step_seconds = seconds if timeline.step < 2 else 0.9 * timeline.step_seconds + 0.1 * seconds
        timeline.add_row(seconds, state.interval, amp)
        if timeline.sampled or len(timeline.rows) >= _ROWS or now - self._flushed > _FLUSH_SECONDS:
            self._flush(now)
        timeline.gradients_reset, timeline.stale = False, None
        state.sink.interval = Interval()
        state.calls.clear()
        state.counts["step"] += 1
        timeline.step += 1
        state.sink.run_step = max(state.sink.run_step, timeline.step)
        self._plan_next(timeline)

    def _flush(self, now: float) -> None:
        """Hand the waiting rows to the recorder, and set the alarm again from the losses in them.

        The rows of many steps at once: for each alone the caches would be cold.
        """
        state = self.state
        recorder = state.sink.recorder
        assert recorder is not None
        self._flushed = now
        for timeline in state.timelines.values():
            for step, names, values in timeline.take_rows():
                recorder.add(step, names, values)
            timeline.norm_every = state.budget.interval(timeline.norm_seconds, timeline.step_seconds)
        self._backward.loss_alarm = min(timeline.loss_alarm() for timeline in state.timelines.values())
        recorder.drain()

    def _plan_next(self, timeline: Timeline) -> None:
        state = self.state
        state.promoted = False
        before = state.sampler.sampling
        sampling = state.sampler.next(id(timeline.optimizer), timeline.step, state.timelines.keys())
        if before and not sampling:
            self._forward.stop()
        elif sampling and not before:
            self._forward.start()

    @guarded
    def _step_over(self) -> None:
        """The optimizer has stepped, and all that belongs to the step is recorded."""
        if self.between_steps is not None:
            self.between_steps()


def _learning_rate(optimizer: Optimizer) -> Any:
    groups = optimizer.param_groups
    return groups[0].get("lr", 0.0) if len(groups) == 1 else max((g.get("lr", 0.0) for g in groups), default=0.0)
