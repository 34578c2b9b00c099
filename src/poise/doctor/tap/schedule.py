"""Hooks of learning rate schedules: how often they step."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from poise.doctor.tap.function_hook import FunctionHook
from poise.doctor.tap.guard import guarded
from poise.doctor.tap.plain import is_compiling
from poise.doctor.tap.state import TapState
from poise.doctor.tap.user_line import user_line

_CYCLES = {"CosineAnnealingLR": "T_max"}  # the argument that says after how many steps the rate rises again
_DECAYS = {"StepLR", "MultiStepLR", "ExponentialLR"}
_GONE = 1e-4  # of the rate at first


class ScheduleHooks:
    """Notes as an event a schedule that is stepped with every batch and has used itself up.

    Args:
        state: of the tap.
    """

    def __init__(self, state: TapState) -> None:
        self.state = state
        self._told: set[int] = set()

    def functions(self) -> list[FunctionHook]:
        """Return the hooks that stay for the whole run."""
        return [FunctionHook(LRScheduler.step, finally_=self._stepped)]

    def _stepped(self, schedule: Any, *_: Any) -> None:
        name = type(schedule).__name__
        if name in _CYCLES and not is_compiling():
            if schedule.last_epoch > 2 * getattr(schedule, _CYCLES[name]):
                self._note(schedule, "cycles")
        elif name in _DECAYS and not is_compiling():
            rate, first = schedule.optimizer.param_groups[0]["lr"], schedule.base_lrs[0]
            if isinstance(rate, float) and rate < _GONE * first:
                self._note(schedule, "decays")

    @guarded
    def _note(self, schedule: Any, how: str) -> None:
        """Tell once of each schedule, if it took a step for nearly every step of its optimizer."""
        if id(schedule) in self._told:
            return
        self._told.add(id(schedule))
        steps = self.state.steps_of(schedule.optimizer)
        if steps and 0.9 * steps <= schedule.last_epoch <= 1.1 * steps + 1:
            length = getattr(schedule, _CYCLES.get(type(schedule).__name__, ""), None)
            payload = {"class": type(schedule).__name__, "how": how, "length": length, "steps": steps}
            self.state.sink.event(self.state.step, "schedule_per_batch", {**payload, "source": user_line()})
