"""Multiply the learning rate of every step by a factor.

## What it does
Around each ``optimizer.step()`` the learning rate of every parameter group is ``VALUE`` times what the script and its
schedulers set; right after the step the script's own number is back. Schedulers that multiply the rate, overwrite it or
read it therefore work as before. Default 0.3.

## When it helps
When a step is longer than the curvature allows: gradient descent is stable while the learning rate times the largest
eigenvalue of the Hessian stays below 2, and adaptive optimizers obey the same bound for their preconditioned Hessian.
It is also the first thing to try against growing attention logits and against dead units. A factor above 1 treats
``lr_too_small``.

## What it costs
Progress: each step goes ``VALUE`` times as far. The trial compares losses at equal steps, so that a remedy that only
slows the run down has a higher loss.

## Making it permanent
Lower the learning rate where the optimizer is made, before its scheduler is made.

## References
Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability", 2021, arXiv:2103.00065.
Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", 2022, arXiv:2207.14484.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.group_values import GroupValues
from poise.doctor.remedies.remedy import Remedy, Values


class LRScale(Remedy):
    """Multiply the learning rate of every step by ``value``.

    Args:
        value: factor above 0. Default 0.3.
    """

    name = "lr_scale"
    default = 0.3
    values = Values(above=0.0)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._lr = GroupValues("lr")

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Scale the learning rate of every group."""
        if not self._lr.apply(optimizer, lambda lr: lr * self.value):
            self.note(f"{type(optimizer).__name__} has no learning rate to scale")

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the script's learning rate back."""
        self._lr.restore(optimizer)

    def code(self) -> str:
        """Return the change of the learning rate."""
        return (
            "# once, after the optimizer is made and before its scheduler\n"
            "for group in optimizer.param_groups:\n"
            f'    group["lr"] *= {self.value!r}\n'
        )
