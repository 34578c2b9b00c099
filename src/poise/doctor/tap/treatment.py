"""The remedies of a run, acting around its optimizer steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy
from poise.doctor.tap.timeline import Interval


class Treatment:
    """Lets remedies act, and drops them all as soon as one fails: the run goes on untreated and says so.

    Args:
        remedies: what acts, in this order.
        told: called with the names of dropped remedies and the error.
    """

    def __init__(self, remedies: Sequence[Remedy], told: Callable[[str, str], object]) -> None:
        self.remedies = tuple(remedies)
        self._told = told
        self.acting: dict[int, list[Remedy]] = {}  # by optimizer: one may step inside another

    def before_step(self, optimizer: Optimizer, interval: Interval) -> None:
        """Let the remedies act; ``interval`` knows the loss of the step."""
        acting: list[Remedy] = []
        self.acting[id(optimizer)] = acting
        for remedy in self.remedies:
            acting.append(remedy)
            try:
                loss = interval.loss()
                remedy.before_step(optimizer, torch.tensor(loss) if isinstance(loss, float) else loss)
            except Exception as error:
                self._drop(error)
                self.after_step(optimizer)  # what had been changed already is put back
                return

    def after_step(self, optimizer: Optimizer) -> None:
        """Let the remedies undo what they must, last first."""
        for remedy in reversed(self.acting.pop(id(optimizer), [])):
            try:
                remedy.after_step(optimizer)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        if not self.remedies:
            return
        names = ", ".join(remedy.spec for remedy in self.remedies)
        self.remedies = ()
        said = f"{type(error).__name__}: {error}"
        print(f"poise: remedy {names} failed and was dropped ({said})".replace("\n", " "), file=sys.stderr)
        self._told(names, str(error))
