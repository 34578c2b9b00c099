"""The tap: where numbers leave a live run without the script being changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.optim import Optimizer

from poise.doctor.budget import Budget
from poise.doctor.probes.probe import Probe, hooks_of
from poise.doctor.recorder import Recorder
from poise.doctor.remedies.remedy import Remedy
from poise.doctor.tap.amp import AmpHooks
from poise.doctor.tap.backward import BackwardHooks
from poise.doctor.tap.checkpoints import CheckpointHooks
from poise.doctor.tap.compile import CompileHooks
from poise.doctor.tap.dropout import DropoutHooks
from poise.doctor.tap.forward import ForwardHooks
from poise.doctor.tap.function_hook import installed
from poise.doctor.tap.learned import LearnedHooks
from poise.doctor.tap.loss import LossHooks
from poise.doctor.tap.order import OrderHooks
from poise.doctor.tap.schedule import ScheduleHooks
from poise.doctor.tap.sink import Sink
from poise.doctor.tap.state import TapState
from poise.doctor.tap.step import StepHooks
from poise.doctor.tap.targets import TargetHooks
from poise.doctor.tap.timeline import Timeline
from poise.doctor.tap.treatment import Treatment


class Tap:
    """Follows optimizers, losses and models of the running process and passes what it observes to probes.

    It changes nothing: torch's own optimizer hooks report steps, hooks within a few Python functions of torch
    (:mod:`poise.doctor.tap.function_hook`) report everything else. One class follows each kind of event.

    Args:
        recorder: where the signals go; ``None`` for a process that only applies remedies (ranks above 0).
        probes: what measures a sampled step.
        budget: how much of the run's time the watch may take.
        remedies: changes that act on the live run.
        only: optimizers to follow; all of the process if ``None``.
        roots: the models, if the caller has them; found from the optimizers' parameters if ``None``.
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
        self.budget = budget
        sink = Sink(recorder)
        self.treatment = Treatment(remedies, lambda names, error: self._remedies_dropped(names, error))
        self.state = TapState(sink, hooks_of(probes), budget, self.treatment, only, roots)
        self.forward = ForwardHooks(self.state)
        self.backward = BackwardHooks(self.state, self.forward)
        self.targets = TargetHooks(self.state)
        self.step_hooks = StepHooks(self.state, self.forward, self.backward, self.targets)
        self._schedules = ScheduleHooks(self.state)
        self._groups = (
            self.forward,
            LossHooks(self.state),
            self.backward,
            self.targets,
            AmpHooks(self.state, self.step_hooks),
            CompileHooks(self.state, self.forward, self.step_hooks),
            CheckpointHooks(self.state),
            DropoutHooks(self.state),
            LearnedHooks(self.state),
            OrderHooks(self.state),
            self._schedules,
        )

    @contextmanager
    def installed(self) -> Iterator[Tap]:
        """Watch this process for as long as the context lasts."""
        with ExitStack() as stack:
            # Hooks of poise that a script still holds afterwards must do nothing.
            stack.callback(self.close)
            self.step_hooks.register(stack)
            hooks = [hook for group in self._groups for hook in group.functions()]
            stack.enter_context(installed(hooks, self.state.fail))
            stack.callback(self.forward.close)
            stack.callback(self.targets.close)
            self.forward.open()
            yield self

    def close(self) -> None:
        """Stop for good; what was recorded so far is handed over."""
        self.state.thread = None  # the thread that ends the watch need not be the one that trained
        self._schedules.close()
        self.step_hooks.flush()
        self.state.off = True
        self.treatment.remedies = ()

    @property
    def timelines(self) -> dict[int, Timeline]:
        """One per optimizer that has stepped."""
        return self.state.timelines

    @property
    def counts(self) -> dict[str, int]:
        """Forward passes of models, backward passes and optimizer steps that were seen."""
        return self.state.counts

    @property
    def fault(self) -> str | None:
        """The error of the watch itself that switched it off."""
        return self.state.fault

    @property
    def between_steps(self) -> Callable[[], None] | None:
        """Called after every step, if set."""
        return self.step_hooks.between_steps

    @between_steps.setter
    def between_steps(self, call: Callable[[], None] | None) -> None:
        self.step_hooks.between_steps = call

    def _remedies_dropped(self, names: str, error: str) -> None:
        self.state.sink.event(self.state.step, "remedy_failed", {"remedies": names, "error": error})
