"""What the hook groups of a tap share."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from poise.doctor.budget import Budget
from poise.doctor.stderr import print_line
from poise.doctor.tap.discovery import Names, name_model
from poise.doctor.tap.interval import Interval
from poise.doctor.tap.sampler import Sampler
from poise.doctor.tap.shadow import RootCall
from poise.doctor.tap.sink import Sink
from poise.doctor.tap.timeline import Timeline
from poise.doctor.tap.treatment import Treatment

FIRST_STEPS = 12  # of each optimizer, in which exact facts are looked for whatever is sampled
_MAX_TIMELINES = 8
_CALLS = 4  # of the model within one step that are kept: the latest micro-batches

ProbeHooks = Mapping[str, list[Callable[..., None]]]
"""What the probes do, by the name of the hook (``"forward"``, ``"after_step"``, ...)."""


class TapState:
    """What the hook groups of a tap share.

    Args:
        sink: where signals and events go.
        probes: what is called on a sampled step.
        budget: how much of the run's time the watch may take.
        treatment: the remedies that act on the run.
        only: optimizers to follow; all of the process if ``None``.
        given_roots: the models, if the caller has them.

    Attributes:
        off: whether nothing is recorded (any more).
        busy: whether a hook of poise runs: what it computes is not watched.
        shadowing: whether a forward pass runs that the watch started itself.
        grad_enabled: of the user's code, at the current hook.
        compiled: whether part of a model is compiled, so that its modules are seen in shadow forward passes only.
        gradients_hooked: whether the script has put a hook on a tensor's gradient.
        calls: of root modules, since the last step.
        stepping: the timeline whose optimizer step runs.
        busy_thread: the one in which it runs.
        thread: the one that trains, once known; what others do is not followed.
        promoted: whether this step is sampled though it was not planned.
    """

    def __init__(
        self,
        sink: Sink,
        probes: ProbeHooks,
        budget: Budget,
        treatment: Treatment,
        only: Sequence[Optimizer] | None,
        given_roots: Sequence[nn.Module] | None,
    ) -> None:
        self.sink, self.probes, self.budget, self.treatment = sink, probes, budget, treatment
        self.sampler = Sampler(budget)
        self.only = None if only is None else {id(o) for o in only}
        self.given_roots = given_roots
        self.off = sink.recorder is None
        self.busy = False
        self.busy_thread = 0
        self.shadowing = False
        self.grad_enabled = True
        self.thread: int | None = None
        self.compiled = False
        self.gradients_hooked = False
        self.timelines: dict[int, Timeline] = {}
        self.roots: list[nn.Module] = []
        self.calls: deque[RootCall] = deque(maxlen=_CALLS)
        self.stepping: Timeline | None = None
        self.promoted = False
        self.counts = {"forward": 0, "backward": 0, "step": 0}
        self.explained: set[str] = set()
        self.fault: str | None = None
        self.at_fault: list[Callable[[], None]] = []
        _alive.add(self)

    @property
    def interval(self) -> Interval:
        """What has happened since the last optimizer step."""
        return self.sink.interval

    @property
    def names(self) -> Names:
        """Names of what belongs to the models."""
        return self.sink.names

    @property
    def step(self) -> int:
        """Step of the optimizer that steps most."""
        return self.sink.run_step

    @property
    def is_early(self) -> bool:
        """Whether an optimizer takes one of its first steps."""
        return any(timeline.step < FIRST_STEPS for timeline in self.timelines.values())

    @property
    def sampling(self) -> bool:
        """Whether the running step is sampled."""
        return self.sampler.sampling and not self.off

    def call_probes(self, hook: str, *arguments: Any) -> None:
        """Call one hook of all probes that have it."""
        for call in self.probes[hook]:
            call(self.sink, *arguments)

    def follow_this_thread(self) -> None:
        """Follow only what happens in the thread that calls this: the first optimizer step was seen in it."""
        self.thread = threading.get_ident()

    def follows(self, optimizer: Optimizer) -> bool:
        """Return whether ``optimizer`` has, or may get, a timeline."""
        if self.only is not None and id(optimizer) not in self.only:
            return False
        return id(optimizer) in self.timelines or len(self.timelines) < _MAX_TIMELINES

    def steps_of(self, optimizer: Optimizer) -> int:
        """Return how many steps of ``optimizer`` were seen."""
        timeline = self.timelines.get(id(optimizer))
        return 0 if timeline is None else timeline.step

    def trigger(self) -> None:
        """Sample this step and the next ones, as far as the budget allows, because a value is unusual."""
        if not self.sampler.trigger():
            return
        if not self.sampling and not self.promoted and self.calls:
            self.call_probes("model_inputs", self.calls[-1].args, self.calls[-1].kwargs)
        self.promoted = True

    def explain(self, kind: str, explanation: Callable[[], dict[str, Any]]) -> None:
        """Find out where something non-finite came from, once per run and kind: it takes a forward pass."""
        if kind in self.explained:
            return
        self.explained.add(kind)
        if not self.roots:
            self.sink.names = name_model([c.root for c in self.calls if any(True for _ in c.root.parameters())])
        self.sink.event(self.step, kind, explanation())
        self.trigger()

    def fail(self, error: Exception) -> None:
        """Switch the watch off after a fault of its own, with one line on stderr."""
        self.off = True
        self.sink.interval = Interval()  # remedies must not get its losses any more
        if self.fault is not None:
            return
        self.fault = f"{type(error).__name__}: {error}".replace("\n", " ")
        print_line(f"poise: the watch switched itself off ({self.fault}); the run continues")
        for call in self.at_fault:
            call()


_alive: weakref.WeakSet[TapState] = weakref.WeakSet()


def _switch_off_in_child() -> None:
    # A forked child shares the run file with its parent, but is another run.
    for state in _alive:
        state.off = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_switch_off_in_child)
