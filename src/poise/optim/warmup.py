"""Warm-ups: learning rates that rise by the clock, or as fast as the curvature allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosineLR(LRScheduler):
    r"""Rise linearly from zero, then fall along half a cosine.

    .. math:: \eta_t = \eta t / w \;(t < w), \qquad
        \eta_{min} + \tfrac12 (\eta - \eta_{min}) (1 + \cos \pi \tfrac{t - w}{T - w}) \;(w \le t \le T)

    and :math:`\eta_{min}` after that.

    Args:
        optimizer: its learning rates, the peaks :math:`\eta`, are set.
        warmup: steps of the rise, :math:`w`; 0 for none.
        total_steps: step at which the lowest learning rate is reached, :math:`T`.
        min_ratio: :math:`\eta_{min} / \eta`.
        last_epoch: steps that are done already; -1 at the start.

    Raises:
        ValueError: if not ``0 <= warmup < total_steps``, or ``min_ratio`` is outside [0, 1].

    References:
        Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983; D'Angelo et al., NeurIPS 2024, arXiv:2310.04415.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int, total_steps: int, min_ratio: float = 0.1, last_epoch: int = -1
    ) -> None:
        if not 0 <= warmup < total_steps:
            raise ValueError(f"warmup must lie in 0..total_steps - 1 = {total_steps - 1}, got {warmup}")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"min_ratio must lie in [0, 1], got {min_ratio}")
        self.warmup, self.total_steps, self.min_ratio = warmup, total_steps, min_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step."""
        return [base * self._factor(self.last_epoch) for base in self.base_lrs]

    def _factor(self, step: int) -> float:
        if step < self.warmup:
            return step / self.warmup
        fraction = min(1.0, (step - self.warmup) / (self.total_steps - self.warmup))
        return self.min_ratio + (1 - self.min_ratio) * (1 + math.cos(math.pi * fraction)) / 2


class CurvatureWarmup(LRScheduler):
    r"""Raise the learning rate only while the sharpness leaves room for it.

    Every ``every`` steps ``sharpness_limit`` is called for the largest stable learning rate (``2 / lambda_max`` for
    gradient descent; ``lr / tracker.update(...).ratio`` for any optimizer that ``poise.curvature.SharpnessTracker``
    knows). The learning rate goes up by ``1 / warmup`` of its peak a step while it is below ``headroom`` times that
    limit, and holds otherwise; it never falls. Our own extension of the observation that warm-up works by letting the
    curvature come down first.

    Args:
        optimizer: its learning rates, the peaks, are set.
        sharpness_limit: called without arguments; returns the largest stable learning rate of the first group.
        warmup: steps of the rise if nothing holds it.
        headroom: largest fraction of the limit that is used.
        every: steps between two measurements.
        last_epoch: steps that are done already; -1 at the start.

    Raises:
        ValueError: if ``warmup`` or ``every`` is below 1, ``headroom`` is not positive, or the limit is not positive.

    References:
        Gilmer et al., "A Loss Curvature Perspective on Training Instability in Deep Learning", ICLR 2022,
        arXiv:2110.04369.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        sharpness_limit: Callable[[], float],
        warmup: int,
        headroom: float = 0.8,
        every: int = 10,
        last_epoch: int = -1,
    ) -> None:
        if warmup < 1 or every < 1:
            raise ValueError(f"warmup and every must be at least 1, got {warmup} and {every}")
        if not headroom > 0:
            raise ValueError(f"headroom must be positive, got {headroom}")
        self._sharpness_limit = sharpness_limit
        self.warmup, self.headroom, self.every = warmup, headroom, every
        self.fraction, self.limit = 0.0, math.inf
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step; calls for the limit when it is due.

        Raises:
            ValueError: if ``sharpness_limit`` returns no positive learning rate.
        """
        if self.fraction < 1:
            if self.last_epoch % self.every == 0:
                self.limit = float(self._sharpness_limit())
                if not self.limit > 0:
                    raise ValueError(f"sharpness_limit must return a positive learning rate, got {self.limit}")
            raised = min(1.0, self.fraction + 1 / self.warmup)
            if raised * float(self.base_lrs[0]) <= self.headroom * self.limit:
                self.fraction = raised
        return [base * self.fraction for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the function."""
        return {key: value for key, value in super().state_dict().items() if key != "_sharpness_limit"}
