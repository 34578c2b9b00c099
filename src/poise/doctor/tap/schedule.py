"""Hooks of learning rate schedules: how often they step, compared with how many steps they were made for."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_compiling
from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import user_line

# The attribute that says after how many steps a schedule is at its end.
_LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps", "PolynomialLR": "total_iters"}
_CYCLES, _DECAYS = {"CosineAnnealingLR"}, {"StepLR", "MultiStepLR", "ExponentialLR"}
_GONE = 1e-4  # of the rate at first
_STEPS = 20  # of the optimizer: fewer say nothing of a pace
_SLOWER = 5  # steps of the optimizer for one of the schedule, at the least, where it goes by epochs


@dataclass
class _Use:
    """How a schedule is used.

    Args:
        name: class of the schedule.
        optimizer: whose rate it sets, by id.
        length: after how many steps it is at its end; ``None`` where that is not known.
        epoch: how many batches it was told that an epoch has.
        first_step: steps of the optimizer when the schedule was made.
        first_backward: backward passes at that time.
        source: the line that made it.
        taken: steps that it has taken.
        counted: whether its steps can be compared: it belongs to no other schedule, and was neither set nor loaded.
    """

    name: str
    optimizer: int
    length: int | None
    epoch: int | None
    first_step: int
    first_backward: int
    source: str
    taken: int = 0
    counted: bool = True


class ScheduleHooks:
    """Notes as events a schedule that goes by batches and was made for epochs, and the reverse.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._told: set[int] = set()
        self._uses: list[_Use] = []
        self._use_of: weakref.WeakKeyDictionary[Any, _Use] = weakref.WeakKeyDictionary()

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [
            FunctionHook(LRScheduler.step, finally_=self._stepped),
            FunctionHook(SequentialLR.step, finally_=self._sequence_stepped),
        ]

    def close(self) -> None:
        """The watch ends: only now is it known how many steps a schedule was to take."""
        for use in self._uses:
            self._note_missing(use)

    def _stepped(self, schedule: Any, epoch: Any = None) -> None:
        if is_compiling():
            return
        use = self._use_of.get(schedule)
        if use is None:
            self._note_new(schedule)
            return
        use.taken += 1
        if epoch is not None or schedule.last_epoch != use.taken:
            use.counted = False
        if use.epoch is not None and use.taken == 2:
            self._compare_epoch(use)
        self._look_for_the_end(schedule, use)

    def _sequence_stepped(self, schedule: Any) -> None:
        if is_compiling():
            return
        parts = [self._use_of[part] for part in schedule._schedulers if part in self._use_of]
        for part in parts:
            part.counted = False
        is_new = schedule not in self._use_of
        if is_new:
            self._note_new(schedule)
        use = self._use_of.get(schedule)
        if use is not None:
            if is_new and parts:  # it was made right after its parts
                use.first_step = max(part.first_step for part in parts)
                use.first_backward = max(part.first_backward for part in parts)
            use.taken += 1
            use.counted = use.counted and schedule.last_epoch == use.taken

    @guarded
    def _note_new(self, schedule: Any) -> None:
        state = self.state
        optimizer = schedule.optimizer
        steps, backwards = state.steps_of(optimizer), state.counts["backward"]
        length = _length(schedule)
        use = _Use(
            type(schedule).__name__, id(optimizer), length, _batches_of_an_epoch(), steps, backwards, user_line()
        )
        use.counted = schedule.last_epoch in (0, 1) and length is not None
        self._uses.append(use)
        self._use_of[schedule] = use

    # ---- too fast --------------------------------------------------------------------------------------------------

    def _look_for_the_end(self, schedule: Any, use: _Use) -> None:
        over = use.length is not None and schedule.last_epoch > 2 * use.length
        if use.name in _CYCLES and over:
            self._note(schedule, use, "cycles")
        elif use.name in _DECAYS or over:
            rate, first = schedule.optimizer.param_groups[0]["lr"], schedule.base_lrs[0]
            if isinstance(rate, float) and rate < _GONE * first:
                self._note(schedule, use, "decays")

    @guarded
    def _note(self, schedule: Any, use: _Use, how: str) -> None:
        """Tell once of each schedule, if it took a step for nearly every step of its optimizer."""
        if id(schedule) in self._told:
            return
        self._told.add(id(schedule))
        steps = self.state.steps_of(schedule.optimizer)
        if steps and 0.9 * steps <= schedule.last_epoch <= 1.1 * steps + 1:
            payload = {"class": use.name, "how": how, "length": use.length, "steps": steps}
            self.state.sink.event(self.state.step, "schedule_per_batch", {**payload, "source": user_line()})

    # ---- too slow --------------------------------------------------------------------------------------------------

    @guarded
    def _compare_epoch(self, use: _Use) -> None:
        """Compare the pace with what the schedule was told of an epoch; it has taken its second step."""
        steps = self._steps(use)
        if use.epoch is not None and use.epoch >= _SLOWER and abs(steps - 2 * use.epoch) <= 2:
            self._tell(use, steps, "epochs")

    @guarded
    def _note_missing(self, use: _Use) -> None:
        """Tell of a schedule that was made for as many steps as there were, and has taken a fraction of them."""
        steps, length = self._steps(use), use.length
        if not use.counted or length is None or steps < _STEPS:
            return
        if use.taken == 0:
            if abs(length - steps) <= 1:
                self._tell(use, steps, "never")
        elif _SLOWER * use.taken <= steps:
            # Exactly, or with one batch of an epoch counted wrongly.
            if abs(length - steps) in (0, 1, use.taken):
                self._tell(use, steps, "epochs")
        elif abs(use.taken - steps) <= 1 and len(self.state.timelines) == 1:
            backwards = self.state.counts["backward"] - use.first_backward
            if length > 1.5 * steps and abs(length - backwards) <= 1:
                self._tell(use, steps, "accumulation")

    def _steps(self, use: _Use) -> int:
        timeline = self.state.timelines.get(use.optimizer)
        return 0 if timeline is None else timeline.step - use.first_step

    def _tell(self, use: _Use, steps: int, how: str) -> None:
        use.counted, use.epoch = False, None
        facts = {"class": use.name, "how": how, "length": use.length, "steps": steps, "taken": use.taken}
        self.state.sink.event(self.state.step, "schedule_steps_missing", {**facts, "source": use.source})


def _length(schedule: Any) -> int | None:
    """Return after how many steps a schedule is at its end; ``None`` where that is not known."""
    name = type(schedule).__name__
    if name in _LENGTHS:
        length = getattr(schedule, _LENGTHS[name], None)
    elif name == "LambdaLR":
        # The schedules of transformers are functions with their arguments bound.
        bound = getattr(schedule.lr_lambdas[0], "keywords", None) or {}
        length = bound.get("num_training_steps")
    elif name == "SequentialLR":
        last = _length(schedule._schedulers[-1])
        length = None if last is None else schedule._milestones[-1] + last
    else:
        length = None
    return length if isinstance(length, int) and length > 0 else None


def _batches_of_an_epoch() -> int | None:
    """Return what ``OneCycleLR`` is told, if it is being made right now."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__init__" and frame.f_locals.get("steps_per_epoch") is not None:
            given = frame.f_locals["steps_per_epoch"]
            return given if isinstance(given, int) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None
