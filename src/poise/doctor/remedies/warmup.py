"""Raise the learning rate linearly over the first steps.

## What it does
Step ``t`` (from 0, counted per optimizer from the start of this process) uses ``min(1, (t + 1) / VALUE)`` times the
learning rate of the script. From step ``VALUE - 1`` on nothing is changed. Default 100 steps.

## When it helps
When the run breaks in its first few per cent, or right after it was resumed without its optimizer state. Early in
training the curvature is high and falls while small steps are taken, and Adam's second moment rests on few gradients.
A warm-up gives both time to settle, and the full learning rate is then harmless.

## What it costs
About ``VALUE / 2`` steps' worth of progress, once.

## Making it permanent
Add a ``LinearLR`` scheduler; it multiplies and so combines with the scheduler that is already there.

## References
Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep Learning", 2021, arXiv:2110.04369.
Ma and Yarats, "On the adequacy of untuned warmup for adaptive optimization", 2019, arXiv:1910.04209.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.group_values import GroupValues
from poise.doctor.remedies.remedy import Remedy, Values


class Warmup(Remedy):
    """Raise the learning rate linearly over the first ``value`` steps of each optimizer.

    Args:
        value: number of steps, at least 1. Default 100.
    """

    name = "warmup"
    default = 100
    values = Values(above=1, closed=True, whole=True)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._lr = GroupValues("lr")
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Scale the learning rate by this optimizer's own step count."""
        step = self._steps.get(optimizer, 0)
        self._steps[optimizer] = step + 1
        factor = (step + 1) / self.value
        if factor < 1 and not self._lr.apply(optimizer, lambda lr: lr * factor):
            self.note(f"{type(optimizer).__name__} has no learning rate to warm up")

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the script's learning rate back."""
        self._lr.restore(optimizer)

    def code(self) -> str:
        """Return the scheduler that does the same."""
        return (
            "# once, after the optimizer is made\n"
            "warmup = torch.optim.lr_scheduler.LinearLR(\n"
            f"    optimizer, start_factor=1 / {self.value}, end_factor=1.0, total_iters={max(int(self.value) - 1, 1)}\n"
            ")\n"
            "# in the loop, after optimizer.step()\n"
            "warmup.step()\n"
        )
