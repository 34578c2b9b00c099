"""1cycle: one rise and fall of the learning rate, with momentum moving against it."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _Cycle(LRScheduler):
    """Sets learning rate and momentum of every group from closed forms of the step."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        base_div: float,
        momentum: tuple[float, float] | None,
        last_epoch: int,
        strict: bool,
    ) -> None:
        if total_steps < 4:
            raise ValueError(f"total_steps must be at least 4, got {total_steps}")
        if not base_div > 1:
            raise ValueError(f"base_div must be greater than 1, got {base_div}")
        self.max_lrs = _one_per_group(optimizer, max_lr)
        self.base_div, self.total_steps, self.momentum, self.strict = base_div, total_steps, momentum, strict
        if momentum is not None:
            _require_momentum(optimizer, momentum)
        self._told = False
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def lr_at(self, step: float, base: float, peak: float) -> float:
        """Learning rate at a step, from the lowest and the highest of the cycle."""

    @abstractmethod
    def momentum_at(self, step: float, high: float, low: float) -> float:
        """Momentum at a step."""

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of each group at the present step."""
        step = min(self.last_epoch, self.total_steps)
        return [self.lr_at(step, peak / self.base_div, peak) for peak in self.max_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step; behind the last one the final values stay."""
        if self.last_epoch >= self.total_steps and epoch is None:
            if self.strict:
                raise ValueError(f"total_steps={self.total_steps} are over, and strict=True allows no more")
            if not self._told:
                warnings.warn(f"all {self.total_steps} steps are over; the last learning rate stays", stacklevel=2)
                self._told = True
        super().step(epoch)
        if self.momentum is None:
            return
        value = self.momentum_at(min(self.last_epoch, self.total_steps), *self.momentum)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            else:
                group["momentum"] = value


class OneCycle(_Cycle):
    r"""1cycle as the report describes it: up, down, and a tail that falls far below the start.

    The learning rate goes from ``max_lr / base_div`` to ``max_lr`` during the fraction ``up`` of all steps, back during
    the fraction ``down``, and to ``max_lr / base_div / final_div`` during the rest. Momentum goes from the first of
    ``momentum`` to the second and back, and stays there in the tail. Unlike ``torch.optim.lr_scheduler.OneCycleLR`` it
    has three phases, accepts any number of steps from 4 on, and never raises behind the last step.

    Args:
        optimizer: its learning rates and momenta (or first betas) are set.
        max_lr: the highest learning rate, one for all groups or one each; a learning-rate range test finds it.
        total_steps: steps of the whole training.
        up: fraction of the rise.
        down: fraction of the fall.
        base_div: ``max_lr`` over the learning rate of the first step.
        final_div: the learning rate of the first step over that of the last.
        momentum: highest and lowest momentum; ``None`` leaves it alone.
        anneal: ``"linear"`` or ``"cos"`` ramps.
        last_epoch: steps that are done already; -1 at the start.
        strict: raise instead of warning when steps go on behind ``total_steps``.

    Raises:
        ValueError: if ``total_steps`` is below 4, ``up`` and ``down`` are not fractions, a divisor is too small, or
            ``momentum`` is given and the optimizer has none; with ``strict`` in ``step`` behind the last step.

    References:
        Smith, "A disciplined approach to neural network hyper-parameters: Part 1", 2018, arXiv:1803.09820.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.95, nesterov=True)
        >>> schedule = OneCycle(optimizer, max_lr=1.0, total_steps=1000)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        up: float = 0.45,
        down: float = 0.45,
        *,
        base_div: float = 10,
        final_div: float = 1000,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        anneal: Literal["linear", "cos"] = "linear",
        last_epoch: int = -1,
        strict: bool = False,
    ) -> None:
        if not (up > 0 and down > 0 and up + down <= 1 + 1e-12):
            raise ValueError(f"up and down must be positive and at most 1 together, got {up} and {down}")
        if final_div < 1:
            raise ValueError(f"final_div must be at least 1, got {final_div}")
        if anneal not in ("linear", "cos"):
            raise ValueError(f"anneal must be 'linear' or 'cos', got {anneal!r}")
        self.up, self.down, self.final_div, self.anneal = up * total_steps, down * total_steps, final_div, anneal
        super().__init__(optimizer, max_lr, total_steps, base_div, momentum, last_epoch, strict)

    def lr_at(self, step: float, base: float, peak: float) -> float:
        """Learning rate at a step."""
        if step <= self.up:
            return self._ramp(base, peak, step / self.up)
        if step <= self.up + self.down:
            return self._ramp(peak, base, (step - self.up) / self.down)
        tail = self.total_steps - self.up - self.down
        return self._ramp(base, base / self.final_div, (step - self.up - self.down) / tail)

    def momentum_at(self, step: float, high: float, low: float) -> float:
        """Momentum at a step."""
        if step <= self.up:
            return self._ramp(high, low, step / self.up)
        return self._ramp(low, high, min(1.0, (step - self.up) / self.down))

    def _ramp(self, start: float, end: float, fraction: float) -> float:
        if self.anneal == "cos":
            fraction = (1 - math.cos(math.pi * fraction)) / 2
        return start * (1 - fraction) + end * fraction


class OneCycleAsRun(_Cycle):
    r"""1cycle as the report's own experiments ran it, recovered from their logs to six digits.

    With :math:`S` = ``half`` steps: up linearly for :math:`S` steps; then :math:`\eta_{max} (2S - k) / S`, which aims
    at zero, not at the start; from where that is below ``max_lr / base_div / 1000`` that value stays. Momentum is a
    triangle of period :math:`2S` that goes on in the tail at half its height.

    Args:
        optimizer: its learning rates and momenta (or first betas) are set.
        max_lr: the highest learning rate, one for all groups or one each.
        total_steps: steps of the whole training.
        half: steps of the rise; the logs had 0.42 to 0.48 of ``total_steps``; 0.45 by default.
        base_div: ``max_lr`` over the learning rate of the first step.
        momentum: highest and lowest momentum; ``None`` leaves it alone.
        last_epoch: steps that are done already; -1 at the start.
        strict: raise instead of warning when steps go on behind ``total_steps``.

    Raises:
        ValueError: as :class:`OneCycle`, and if ``half`` is outside 1..``total_steps``.

    References:
        Smith, 2018, arXiv:1803.09820.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        half: int | None = None,
        *,
        base_div: float = 12,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        last_epoch: int = -1,
        strict: bool = False,
    ) -> None:
        self.half = round(0.45 * total_steps) if half is None else half
        if not 1 <= self.half <= total_steps:
            raise ValueError(f"half must lie in 1..{total_steps}, got {half}")
        super().__init__(optimizer, max_lr, total_steps, base_div, momentum, last_epoch, strict)

    def lr_at(self, step: float, base: float, peak: float) -> float:
        """Learning rate at a step."""
        if step <= self.half:
            return base + (peak - base) * step / self.half
        return max(peak * (2 * self.half - step) / self.half, base / 1000)

    def momentum_at(self, step: float, high: float, low: float) -> float:
        """Momentum at a step."""
        cycle, phase = divmod(step / self.half, 2)
        return high - (high - low) * (1 - abs(1 - phase)) / 2**cycle


def _one_per_group(optimizer: Optimizer, max_lr: float | Sequence[float]) -> list[float]:
    groups = len(optimizer.param_groups)
    rates = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * groups
    if len(rates) != groups or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"max_lr must be positive, one for all or one per each of {groups} groups, got {max_lr}")
    return rates


def _require_momentum(optimizer: Optimizer, momentum: tuple[float, float]) -> None:
    high, low = momentum
    if not 0 <= low <= high < 1:
        raise ValueError(f"momentum must be (highest, lowest) in [0, 1), got {momentum}")
    if not all("momentum" in group or "betas" in group for group in optimizer.param_groups):
        name = type(optimizer).__name__
        raise ValueError(f"momentum needs an optimizer with momentum or betas, got {name}; pass momentum=None")
