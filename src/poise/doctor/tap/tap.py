"""The tap: where numbers leave a live run without the script being changed."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.doctor.budget import Budget
from poise.doctor.probes.modes import MODAL
from poise.doctor.probes.probe import Probe, lookers
from poise.doctor.recorder import Recorder
from poise.doctor.remedies.remedy import Remedy
from poise.doctor.tap.checkpoint import holds_optimizer_state
from poise.doctor.tap.discovery import Names, find_roots, is_compiled, name_model
from poise.doctor.tap.gradient_norms import measure_gradients
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.leftover_gradients import note_leftover_gradients
from poise.doctor.tap.nonfinite import NO_CULPRIT, explain_nonfinite_backward, explain_nonfinite_forward
from poise.doctor.tap.sampler import Sampler
from poise.doctor.tap.shadow import RootCall, shadow
from poise.doctor.tap.timeline import Interval, Timeline
from poise.doctor.tap.treatment import Treatment

_MAX_TIMELINES = 8
_CALLS = 4  # of the model within one step that are kept: the latest micro-batches
_ROWS, _FLUSH_SECONDS = 64, 0.4  # rows of scalars that wait at most, and for how long


class Tap:
    """Follows optimizers, losses and models of the running process and hands what it sees to probes.

    The tap itself changes nothing. Its moments (:meth:`before_backward`, :meth:`before_step`, ...) are called by the
    hooks and wrappers that :func:`poise.doctor.tap.install.install` puts in place.

    Args:
        recorder: where the signals go; ``None`` for a process that only applies remedies (ranks above 0).
        probes: what looks at a sampled step.
        budget: how much of the run's time the watch may take.
        remedies: changes that act on the live run.
        only: optimizers to follow; all of the process if ``None``.
        roots: the models, where the caller knows them; found from the optimizers' parameters if ``None``.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        probes: Sequence[Probe],
        budget: Budget,
        remedies: Sequence[Remedy] = (),
        only: Sequence[Optimizer] | None = None,
        roots: Sequence[nn.Module] | None = None,
    ) -> None:
        self.recorder = recorder
        self._look = lookers(probes)
        self.budget = budget
        self.sampler = Sampler(budget)
        self.treatment = Treatment(remedies, self.remedies_dropped)
        self.only = None if only is None else {id(o) for o in only}
        self.given_roots = roots
        self.off = recorder is None
        self.busy = False  # in a moment of our own: what we compute there must not be watched
        self.shadowing = False  # in a forward pass that the watch runs itself
        self.grad_enabled = True  # in the user's code, at the current moment
        self.fault: str | None = None
        self.names = Names()
        self.interval = Interval()
        self.timelines: dict[int, Timeline] = {}
        self.stack: list[tuple[nn.Module, list[str]]] = []
        self.roots: list[nn.Module] = []
        self.calls: deque[RootCall] = deque(maxlen=_CALLS)  # of root modules, since the last step
        self.compiled = False
        self.gradients_hooked = False  # the script has put a hook on a tensor's gradient
        self._can_shadow = True
        self.in_backward = 0
        self.counts = {"forward": 0, "backward": 0, "step": 0}
        self.between_steps: Callable[[], None] | None = None  # what is to happen after every step
        # What `install` provides: hooks on modules come and go with sampling, root classes are patched once known.
        self.attach_module_hooks: Callable[[], None] = lambda: None
        self.detach_module_hooks: Callable[[], None] = lambda: None
        self.patch_root_classes: Callable[[list[nn.Module]], None] = lambda roots: None
        self.step_hooks: tuple[Callable[..., None], Callable[..., None]]
        self._stepping: Timeline | None = None
        self._promoted = False  # this very step is to be looked at closely, though it was not planned
        self._explained: set[str] = set()
        self._loss_alarm = math.inf  # a loss from here on may be a spike
        self._flushed = 0.0

    # ---- what probes call ------------------------------------------------------------------------------------------

    def observe(self, signal: str, value: float | Tensor, module: nn.Module | None = None, site: str = "") -> None:
        """Keep a number for the optimizer step that comes next; ``site`` tells calls within one module apart."""
        self.interval.observations.append((signal, module, site, value))

    def emit(
        self, timeline: Timeline, signal: str, layers: Sequence[str] | None, values: Tensor | Sequence[Any]
    ) -> None:
        """Record numbers of the current step: one per layer, or one in all where ``layers`` is ``None``."""
        assert self.recorder is not None
        prefix = timeline.prefix + signal
        names = (prefix,) if layers is None else tuple(f"{prefix}[{layer}]" for layer in layers)
        if names:
            self.recorder.add(timeline.step, names, values)

    def event(self, step: int, kind: str, payload: dict[str, Any]) -> None:
        """Record something that happened, where anything is recorded."""
        if self.recorder is not None:
            self.recorder.event(step, kind, payload)

    def first_look(self, what: str, module: nn.Module | None, site: str = "") -> bool:
        """Return True the first time ``what`` is looked at in ``module`` since the last optimizer step."""
        key = (what + site, id(module))
        if key in self.interval.seen:
            return False
        self.interval.seen.add(key)
        return True

    @property
    def module(self) -> nn.Module | None:
        """The module whose forward runs right now."""
        return self.stack[-1][0] if self.stack else None

    def call_site(self, function: str) -> str:
        """Name the calls of ``function`` within the running module: ``""``, ``"relu2"``, ``"relu3"``, ..."""
        if not self.stack:
            return ""
        calls = self.stack[-1][1]
        calls.append(function)
        count = calls.count(function)
        return "" if count == 1 else f"{function}{count}"

    @property
    def step(self) -> int:
        """Step of the optimizer that steps most, for events that belong to no optimizer."""
        return max((t.step for t in self.timelines.values()), default=0)

    @property
    def sampling(self) -> bool:
        """Whether the running step is looked at closely."""
        return self.sampler.looking and not self.off

    # ---- moments: forward ------------------------------------------------------------------------------------------

    def sees_forward(self) -> bool:
        """Return whether a forward operation that runs now should be looked at."""
        if self.busy or self.off:
            return False
        return self.shadowing or (self.sampler.looking and torch.is_grad_enabled() and not self.compiled)

    @guarded
    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module's forward begins (sampled steps only)."""
        if not self.stack and not self.roots and self.grad_enabled:
            # Before the first optimizer step nobody has said which module is the model: keep whatever is called.
            self.counts["forward"] += 1
            self.calls.append(RootCall.capture(module, args, {}))
            self._look_at_model_inputs(args, {})
        self.stack.append((module, []))

    @guarded
    def leave_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module's forward has ended (sampled steps only)."""
        # Hooks may have come in the middle of an outer module's forward: then its end has no beginning.
        if self.stack and self.stack[-1][0] is module:
            self.stack.pop()
        if (self.grad_enabled or self.shadowing) and self.first_look("forward", module):
            for look in self._look["forward"]:
                look(self, module, args, output)

    @guarded
    def rectified(self, output: Tensor) -> None:
        """A ReLU was computed."""
        site = self.call_site("relu")
        if self.first_look("relu", self.module, site):
            for look in self._look["rectified"]:
                look(self, output, site)

    @guarded
    def call_root(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called: keep the batch until the step is over, in case its step must be explained."""
        # This runs on every step, when the caches are full of the user's numbers: no more than it must.
        self.counts["forward"] += 1
        if self.grad_enabled:
            self.calls.append(RootCall.capture(root, args, kwargs))
            if self.sampler.looking:
                self._look_at_model_inputs(args, kwargs)

    def _look_at_model_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for look in self._look["model_inputs"]:
            look(self, args, kwargs)

    @guarded
    def attention(self, logits: Callable[[], tuple[Tensor, Tensor | None]]) -> None:
        """Attention is computed; ``logits`` makes the logits of one sample."""
        if not self.first_look("attention", self.module):
            return
        with _no_autocast():
            made, visible = logits()
            for look in self._look["attention"]:
                look(self, made, visible)

    @guarded
    def loss_inputs(self, logits: Tensor, target: Tensor, ignore_index: int) -> None:
        """Cross-entropy is computed from these logits."""
        if not self.first_look("loss_inputs", None):
            return
        with _no_autocast():
            for look in self._look["loss_inputs"]:
                look(self, logits.detach(), target.detach(), ignore_index)

    def loss_computed(self, loss: Any) -> None:
        """A loss function has returned."""
        if torch.is_grad_enabled():
            self.interval.loss_output = loss  # nothing here can fail, and remedies want it where nothing is watched
        elif not self.shadowing:
            self._loss_without_gradient()

    @guarded
    def _loss_without_gradient(self) -> None:
        """Somebody evaluates: then Dropout and BatchNorm should not be in training mode."""
        if "eval_in_train_mode" in self._explained or not self.timelines:
            return
        careless = [
            self.names.modules.get(id(m), type(m).__name__)
            for root in self.names.roots
            for m in root.modules()
            if m.training and isinstance(m, MODAL)
        ]
        self._explained.add("eval_in_train_mode")
        if careless:
            self.event(self.step, "eval_in_train_mode", {"modules": careless[:20]})

    # ---- moments: backward -----------------------------------------------------------------------------------------

    @guarded
    def before_backward(self, root: Any) -> None:
        """``backward`` is called on ``root``."""
        self.counts["backward"] += 1
        self.interval.backwards += 1
        loss = self._loss_of(root)
        if loss is not None:
            self.interval.losses.append(loss)
        looking = self.sampler.looking
        # A float below the alarm is neither a spike nor NaN nor infinite: most steps end here.
        if looking or (isinstance(loss, float) and not loss < self._loss_alarm):
            self._look_at_loss(root, loss)
        if looking and self._stepping is None:  # a closure's losses are differentiated at points of the search
            for look in self._look["before_backward"]:
                look(self, root)

    def _loss_of(self, root: Any) -> float | Tensor | None:
        if not isinstance(root, Tensor) or root.numel() != 1:
            return None
        scaled = self.interval.scaled
        loss = scaled[1] if scaled is not None and scaled[0] == id(root) else root
        return loss.item() if loss.is_cpu else loss.detach()

    def _look_at_loss(self, root: Any, loss: float | Tensor | None) -> None:
        if self.sampling:
            for timeline in self.timelines.values():
                note_leftover_gradients(timeline)
        if not isinstance(loss, float):
            return
        if not math.isfinite(loss):
            self._explain("nonfinite_forward", lambda: explain_nonfinite_forward(self, root))
        elif any(t.loss_spiked(loss) for t in self.timelines.values()):
            self._trigger()

    @guarded
    def gradient_hooked(self, tensor: Any) -> None:
        """The script wants to see, or to keep, the gradient of a tensor."""
        self.gradients_hooked = True

    @guarded
    def zero_grad(self, owner: Any) -> None:
        """``zero_grad`` is called on an optimizer or a module."""
        for timeline in self.timelines.values():
            if owner is timeline.optimizer or isinstance(owner, nn.Module):
                timeline.gradients_reset = True

    @guarded
    def clipped(self, norm: Any, max_norm: float) -> None:
        """Gradients were clipped to ``max_norm``; ``norm`` is what they had before."""
        self.interval.clip = (norm.detach() if isinstance(norm, Tensor) else norm, float(max_norm))

    @guarded
    def loss_scaled(self, scaled: Any, loss: Any) -> None:
        """GradScaler has scaled a loss."""
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor):
            self.interval.scaled = (id(scaled), loss.detach())

    # ---- moments: compilers ----------------------------------------------------------------------------------------

    @guarded
    def compiling(self) -> None:
        """Something is about to be compiled."""
        self._use_shadow_forwards()

    @guarded
    def model_compiled(self, compiled: nn.Module) -> None:
        """``torch.compile`` has returned a module."""
        self._adopt([*self.roots, compiled])

    # ---- moments: checkpoints --------------------------------------------------------------------------------------

    @guarded
    def optimizer_loaded(self, optimizer: Any, _: Any) -> None:
        """``load_state_dict`` was called on an optimizer."""
        self.event(self.step, "load_state_dict", {"what": "optimizer", "class": type(optimizer).__name__})

    @guarded
    def model_loaded(self, model: Any, _: Any) -> None:
        """``load_state_dict`` was called on a module."""
        self.event(self.step, "load_state_dict", {"what": "model", "class": type(model).__name__})

    @guarded
    def file_loaded(self, content: Any) -> None:
        """``torch.load`` has returned."""
        self.event(self.step, "torch_load", {"has_optimizer_state": holds_optimizer_state(content)})

    # ---- moments: optimizer ----------------------------------------------------------------------------------------

    def follows(self, optimizer: Optimizer) -> bool:
        """Return whether ``optimizer`` has, or may get, a timeline."""
        if self.only is not None and id(optimizer) not in self.only:
            return False
        return id(optimizer) in self.timelines or len(self.timelines) < _MAX_TIMELINES

    def steps_of(self, optimizer: Optimizer) -> int:
        """Return how many steps of ``optimizer`` were seen."""
        timeline = self.timelines.get(id(optimizer))
        return 0 if timeline is None else timeline.step

    @guarded
    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer step begins; the gradients are final unless the optimizer takes a closure."""
        if self._stepping is not None:
            return  # an optimizer inside another one (SAM, Lookahead): the outer step is the step
        timeline = self.timelines.get(id(optimizer))
        if timeline is None:
            if not self.follows(optimizer):
                return
            timeline = self._new_timeline(optimizer)
        self._stepping = timeline
        timeline.sampled = self.sampler.looking or self._promoted
        timeline.lr = _learning_rate(optimizer)
        self._measure_gradients(timeline)
        timeline.sampled = timeline.sampled or self._promoted
        if timeline.sampled:
            if self.compiled:
                self._shadow_forward()
            for look in self._look["before_step"]:
                look(self, timeline)

    @guarded
    def about_to_step(self, optimizer: Optimizer) -> None:
        """The remedies have acted: note the learning rate that the step will really use."""
        if self._stepping is not None and self._stepping.optimizer is optimizer:
            self._stepping.lr = _learning_rate(optimizer)

    @guarded
    def remedies_dropped(self, names: str, error: str) -> None:
        """A remedy has failed."""
        self.event(self.step, "remedy_failed", {"remedies": names, "error": error})

    @guarded
    def after_step(self, optimizer: Optimizer) -> None:
        """The optimizer step is done."""
        timeline = self._stepping
        if timeline is None or timeline.optimizer is not optimizer:
            return
        self._stepping = None
        if timeline.grad_norm is None and timeline.norm_due:  # a closure made the gradients, inside the step
            self._measure_gradients(timeline)
        if timeline.sampled:
            for look in self._look["after_step"]:
                look(self, timeline)
            if timeline.stale is not None:
                # A backward pass of another network may have run through these parameters: what counts is whether
                # gradients were reset at any time between two steps.
                self.emit(timeline, "stale_gradient", None, [timeline.stale & (not timeline.gradients_reset)])
            self._flush_observations(timeline)
        self._end_step(timeline)

    @guarded
    def step_skipped(self, optimizer: Optimizer, scale: float) -> None:
        """A GradScaler found infinities and left the optimizer step out."""
        if not self.follows(optimizer):
            return
        timeline = self.timelines.get(id(optimizer)) or self._new_timeline(optimizer)
        timeline.sampled = self.sampling
        timeline.grad_norm, timeline.with_gradient = None, []
        if timeline.sampled:
            self._flush_observations(timeline)
        self._end_step(timeline, (scale, 1.0))

    @guarded
    def step_scaled(self, optimizer: Optimizer, scale: float | Tensor) -> None:
        """A GradScaler let the optimizer step happen (its row is the last one)."""
        timeline = self.timelines.get(id(optimizer))
        if timeline is not None:
            timeline.last_amp(scale)

    def _new_timeline(self, optimizer: Optimizer) -> Timeline:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.given_roots is not None:
            if not self.roots:
                self._adopt(list(self.given_roots))
        elif any(id(p) not in self.names.parameters for p in parameters):
            found = find_roots(parameters)
            self._adopt([*self.roots, *(r for r in found if not any(r is known for known in self.roots))])
        names = [self.names.parameters.get(id(p), f"parameter.{i}") for i, p in enumerate(parameters)]
        index = len(self.timelines)
        if not index:
            self.budget.start()
        timeline = Timeline(optimizer, f"opt{index}/" if index else "", parameters, names)
        self.timelines[id(optimizer)] = timeline
        self.sampler.expect(id(optimizer))
        return timeline

    def _adopt(self, roots: list[nn.Module]) -> None:
        """Take ``roots`` for the models, as the script holds them (DDP and compile wrappers not removed)."""
        self.roots = roots
        self.names = name_model(roots)
        if any(is_compiled(root) for root in roots):
            self._use_shadow_forwards()
        self.patch_root_classes(roots)

    def _use_shadow_forwards(self) -> None:
        """Part of the model is compiled: no hook may touch its modules; sampled steps are repeated eagerly."""
        if not self.compiled:
            self.compiled = True
            self.detach_module_hooks()
            self.event(self.step, "compiled", {"mode": "shadow forward"})

    def _measure_gradients(self, timeline: Timeline) -> None:
        timeline.grad_norm, timeline.layer_norms = None, None
        if self.interval.backwards and timeline.norm_due:
            measure_gradients(timeline, self.interval.clip)
            if isinstance(timeline.grad_norm, float):
                self._watch_norm(timeline, timeline.grad_norm)

    def _watch_norm(self, timeline: Timeline, norm: float) -> None:
        if not math.isfinite(norm):
            if all(math.isfinite(loss) for loss in self.interval.losses if isinstance(loss, float)):
                self._explain("nonfinite_backward", lambda: explain_nonfinite_backward(self, timeline))
            return
        if timeline.norm_spiked(norm):
            self._trigger()
        timeline.recent_norms.append(norm)

    def _shadow_forward(self) -> None:
        """Run the model once more, eagerly, for the probes' sake; nothing of the model changes by it."""
        if not self._can_shadow:
            return
        try:
            for call in self.calls:
                with shadow(call) as forward, self.watched_modules():
                    forward()
        except Exception as error:  # then the optimizer's signals have to do
            self._can_shadow = False
            self.event(self.step, "compiled", {"mode": "optimizer signals only", "error": str(error)})

    def watched_modules(self) -> AbstractContextManager[None]:
        """Look at every module and every attention of a forward pass that the watch itself runs."""
        from poise.doctor.tap.install import inspecting

        return inspecting(self)

    def _flush_observations(self, timeline: Timeline) -> None:
        by_signal: dict[str, tuple[list[str], list[Any]]] = {}
        for signal, module, site, value in self.interval.observations:
            if module is None:
                self.emit(timeline, signal, None, [value])
                continue
            name = self.names.modules.get(id(module))
            if name is not None:
                layers, values = by_signal.setdefault(signal, ([], []))
                layers.append(f"{name}.{site}" if site else name)
                values.append(value)
        for signal, (layers, values) in by_signal.items():
            self.emit(timeline, signal, layers, values)

    def _end_step(self, timeline: Timeline, amp: tuple[float | Tensor, float] | None = None) -> None:
        now = time.perf_counter()
        seconds = now - timeline.ended
        timeline.ended = now
        timeline.step_seconds = seconds if timeline.step < 2 else 0.9 * timeline.step_seconds + 0.1 * seconds
        timeline.add_row(seconds, self.interval, amp)
        if timeline.sampled or len(timeline.rows) >= _ROWS or now - self._flushed > _FLUSH_SECONDS:
            self._flush(now)
        timeline.gradients_reset, timeline.stale = False, None
        self.interval = Interval()
        self.calls.clear()
        self.counts["step"] += 1
        timeline.step += 1
        self._plan_next(timeline)

    def _flush(self, now: float) -> None:
        """Hand the waiting rows to the recorder, and set the alarm anew from the losses in them.

        Many steps' rows in one go: each alone would find the caches cold.
        """
        assert self.recorder is not None
        self._flushed = now
        for timeline in self.timelines.values():
            for step, names, values in timeline.take_rows():
                self.recorder.add(step, names, values)
            timeline.norm_every = self.budget.every(timeline.norm_seconds, timeline.step_seconds)
        self._loss_alarm = min(timeline.loss_alarm() for timeline in self.timelines.values())
        self.recorder.drain()

    @guarded
    def step_over(self) -> None:
        """The optimizer has stepped, and all that belongs to the step is recorded."""
        if self.between_steps is not None:
            self.between_steps()

    def close(self) -> None:
        """The watch ends; what of ours a script has bound to a name of its own does nothing from here on."""
        self._hand_over()
        self.off = True
        self.treatment.remedies = ()

    @guarded
    def _hand_over(self) -> None:
        if self.timelines:
            self._flush(time.perf_counter())

    # ---- when to look closely --------------------------------------------------------------------------------------

    def _trigger(self) -> None:
        """Something stands out: look at this step and at the next ones closely, as far as the budget goes."""
        if not self.sampler.trigger():
            return
        if not self.sampling and not self._promoted and self.calls:
            self._look_at_model_inputs(self.calls[-1].args, self.calls[-1].kwargs)
        self._promoted = True

    def _plan_next(self, timeline: Timeline) -> None:
        self._promoted = False
        before = self.sampler.looking
        looking = self.sampler.next(id(timeline.optimizer), timeline.step, self.timelines.keys())
        if before and not looking:
            self.stack.clear()
            self.detach_module_hooks()
        elif looking and not before and not self.compiled:
            self.attach_module_hooks()

    def _explain(self, kind: str, explanation: Callable[[], dict[str, Any]]) -> None:
        """Find out where something non-finite came from, once per run and kind: it takes a forward pass."""
        if kind not in self._explained:
            self._explained.add(kind)
            if not self.roots:
                self.names = name_model([c.root for c in self.calls if any(True for _ in c.root.parameters())])
            try:
                payload = explanation()
            except Exception as error:  # a forward pass that cannot be repeated leaves the finding without a culprit
                payload = {**NO_CULPRIT, "where": "model", "parameters": [], "error": str(error)}
            self.event(self.step, kind, payload)
            self._trigger()

    def fail(self, error: Exception) -> None:
        """Switch the watch off after a fault of its own, with one line on stderr."""
        self.off = True
        self.interval = Interval()  # the remedies shall not be given its losses for ever
        self.fault = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"poise: the watch switched itself off ({self.fault}); the run goes on", file=sys.stderr)
        self.detach_module_hooks()


def _learning_rate(optimizer: Optimizer) -> Any:
    groups = optimizer.param_groups
    return groups[0].get("lr", 0.0) if len(groups) == 1 else max((g.get("lr", 0.0) for g in groups), default=0.0)


def _no_autocast() -> AbstractContextManager[Any]:
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
    return nullcontext()
