"""Two-phase schedule: a constant learning rate that keeps the noise up, then a small one that lets the loss settle."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class TwoPhaseLR(LRScheduler):
    """Keep the learning rate, then drop it to a fixed value and scale the weight decay.

    Args:
        optimizer: its learning rates and weight decays are set.
        total_steps: steps of the whole training.
        first_decay: fraction of the steps at the first learning rate, in (0, 1].
        final_lr: learning rate of the second phase.
        wd_factor: weight decay of the second phase over that of the first.
        last_epoch: steps that are done already; -1 at the start.

    Raises:
        ValueError: if ``total_steps`` is below 1, ``first_decay`` is outside (0, 1], ``wd_factor`` is negative, or
            ``final_lr`` is not positive or above a group's learning rate.

    References:
        D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", NeurIPS 2024, arXiv:2310.04415.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        first_decay: float = 0.5,
        final_lr: float = 1e-4,
        wd_factor: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 < first_decay <= 1:
            raise ValueError(f"first_decay must lie in (0, 1], got {first_decay}")
        if wd_factor < 0:
            raise ValueError(f"wd_factor must not be negative, got {wd_factor}")
        lowest = min(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
        if not 0 < final_lr <= lowest:
            raise ValueError(f"final_lr must be positive and at most the learning rate {lowest}, got {final_lr}")
        self.milestone, self.final_lr, self.wd_factor = round(first_decay * total_steps), final_lr, wd_factor
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", group.get("weight_decay", 0.0))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step."""
        return list(self.base_lrs) if self.last_epoch < self.milestone else [self.final_lr] * len(self.base_lrs)

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step."""
        super().step(epoch)
        factor = self.wd_factor if self.last_epoch >= self.milestone else 1.0
        for group in self.optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = factor * group["initial_weight_decay"]
