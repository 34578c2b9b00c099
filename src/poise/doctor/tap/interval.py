"""What happened between two optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Interval:
    """What happened between two optimizer steps."""

    losses: list[float | Tensor] = field(default_factory=list)
    loss_output: Any = None  # of a loss function, for loops that never call backward()
    backwards: int = 0
    clip: tuple[Any, float] | None = None  # total norm before clipping, max_norm
    observations: list[tuple[str, Any, str, Any]] = field(default_factory=list)  # signal, module or None, site, value
    seen: set[tuple[str, int]] = field(default_factory=set)
    resets: list[str] = field(default_factory=list)  # lines that reset gradients after a backward pass
    modes: list[bool] = field(default_factory=list)  # True per BatchNorm or Dropout that ran in eval mode
    scaled: tuple[int, Tensor] | None = None  # id of a scaled loss, the loss before GradScaler.scale

    scale: Tensor | None = None  # of the gradients, until they are unscaled

    def loss(self) -> float | Tensor | None:
        """Mean over the backward roots; what a loss function returned last if there was no scalar root."""
        if not self.losses:
            output = self.loss_output
            return output.detach().reshape(()) if isinstance(output, Tensor) and output.numel() == 1 else None
        if len(self.losses) == 1:
            return self.losses[0]
        return sum(self.losses[1:], start=self.losses[0]) / len(self.losses)
