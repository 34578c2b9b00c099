r"""Set the second beta of Adam-like optimizers.

## What it does
Every parameter group with ``betas`` steps with its second entry set to ``VALUE`` (default 0.95); the others, which a
scheduler may move, stay the script's. Around the step only.

## When it helps
Against ``stale_second_moment``: the second moment averages about :math:`1/(1-\beta_2)` steps, 1000 at 0.999. Gradients
that grow faster than that meet a denominator from the past. At 0.95 the memory is 20 steps, and
:math:`\mathrm{RMS}_t = \sqrt{\mathrm{mean}(g^2/\hat v)}` cannot exceed :math:`1/\sqrt{1-\beta_2} \approx 4.5`. It also
treats optimizer state kept in bfloat16, where :math:`v \cdot 0.999` rounds back to :math:`v`.

## What it costs
A noisier denominator: with small batches or rare features (embeddings) training can end slightly worse.

## Making it permanent
Pass ``betas=`` where the optimizer is made.

## References
Wortsman et al., "Stable and low-precision training for large-scale vision-language models", 2023, arXiv:2304.13013.
Molybog et al., "A Theory on Adam Instability in Large-Scale Machine Learning", 2023, arXiv:2304.09871.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.group_values import GroupValues
from poise.doctor.remedies.remedy import Remedy, Values


class Beta2(Remedy):
    """Step with the second entry of ``betas`` set to ``value``.

    Args:
        value: decay of the second moment, in [0, 1). Default 0.95.
    """

    name = "beta2"
    default = 0.95
    values = Values(above=0.0, below=1.0, closed=True)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._betas = GroupValues("betas")

    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Set the second decay of every group that has one."""
        if not self._betas.apply(optimizer, self._changed):
            self.note(f"{type(optimizer).__name__} has no betas, so beta2 changes nothing there")

    def _changed(self, betas: Any) -> Any:
        if not isinstance(betas, tuple | list) or len(betas) < 2:
            return None
        second = torch.full_like(betas[1], self.value) if isinstance(betas[1], Tensor) else self.value
        return type(betas)([betas[0], second, *betas[2:]])

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the script's betas back."""
        self._betas.restore(optimizer)

    def code(self) -> str:
        """Return the change of the betas."""
        return (
            "# once, after the optimizer is made\n"
            "for group in optimizer.param_groups:\n"
            f'    group["betas"] = (group["betas"][0], {self.value!r})\n'
        )
