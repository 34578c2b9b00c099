r"""Continue training from a moving average of the weights.

## What it does
After each step an average of the parameters moves on, :math:`\bar\theta \leftarrow d \bar\theta + (1 - d) \theta`, and
at the end of every :math:`1 / (1 - d)` steps, its memory, the parameters take its place and training goes on from there
(Switch EMA). ``VALUE`` is :math:`d`, 0.99 by default: a switch every 100 steps. Optimizer state and buffers stay.

## When it helps
When steps are too long for the noise in them: weights that swing around a minimum have their middle in it. The average
lowers the loss as a smaller learning rate would and lies in a flatter place, while the steps between two switches stay
as long as they were. It also undoes most of the effect of one bad step.

## What it costs
A second copy of the parameters, and progress: while the loss still falls fast the average lags behind by
:math:`1 / (1 - d)` steps, and each switch gives about half of that stretch back.

## Making it permanent
Switch in the loop as shown; for an average that is only evaluated and never trained on, use ``poise.optim.EMA``.

## References
Li et al., "Switch EMA: A Free Lunch for Better Flatness and Sharpness", 2024, arXiv:2402.09240.
Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy, Values


@dataclass(slots=True)
class _Average:
    parameters: list[Tensor]
    values: list[Tensor]  # at least float32: in bfloat16 small steps of the average would be lost
    steps: int = 0


class EMA(Remedy):
    """Put an exponential moving average into the parameters every ``1 / (1 - value)`` steps.

    Args:
        value: decay of the average, in [0, 1). Default 0.99.
    """

    name = "ema"
    default = 0.99
    values = Values(above=0.0, below=1.0, closed=True)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self.period = max(1, round(1 / (1 - self.value)))
        self._averages: WeakKeyDictionary[Optimizer, _Average] = WeakKeyDictionary()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Start from the current weights, and again where the optimizer was given others."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average = self._averages.get(optimizer)
        if average is None or list(map(id, average.parameters)) != list(map(id, parameters)):
            values = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]
            self._averages[optimizer] = _Average(parameters, values)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Move the average, and switch when it is time."""
        average = self._averages.get(optimizer)
        if average is None:
            return
        for value, p in zip(average.values, average.parameters, strict=True):
            value.lerp_(p.detach().to(value.dtype), 1 - self.value)
        average.steps += 1
        if average.steps % self.period == 0:
            for value, p in zip(average.values, average.parameters, strict=True):
                p.copy_(value)

    def code(self) -> str:
        """Return the average and the switch."""
        return (
            "# once, after the optimizer is made\n"
            'parameters = [p for group in optimizer.param_groups for p in group["params"]]\n'
            "average, steps = [p.detach().clone() for p in parameters], 0\n"
            "# in the loop, after optimizer.step()\n"
            "with torch.no_grad():\n"
            f"    torch._foreach_lerp_(average, [p.detach() for p in parameters], {1 - self.value!r})\n"
            "    steps += 1\n"
            f"    if steps % {self.period} == 0:\n"
            "        torch._foreach_copy_(parameters, average)\n"
        )
