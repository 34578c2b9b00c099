"""One run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from poise.tools.json_numbers import json_number


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """The result of one run of a sweep.

    Args:
        lr: learning rate.
        size: model size; ``None`` in a sweep without sizes.
        seed: seed.
        loss: final loss; NaN or infinite if the run diverged.
        init_loss: loss at initialisation.
        signals: whatever other numbers the run returned, by name.
        stopped_at: step at which the run was stopped because it had diverged; ``None`` if it was not stopped.
    """

    lr: float
    size: int | None
    seed: int
    loss: float
    init_loss: float
    signals: Mapping[str, float] = field(default_factory=dict)
    stopped_at: int | None = None

    @property
    def key(self) -> tuple[int | None, float, int]:
        """Size, learning rate and seed."""
        return self.size, self.lr, self.seed

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; numbers that are not finite become text."""
        return {
            "lr": self.lr,
            "size": self.size,
            "seed": self.seed,
            "loss": json_number(self.loss),
            "init_loss": json_number(self.init_loss),
            "signals": {name: json_number(value) for name, value in self.signals.items()},
            "stopped_at": self.stopped_at,
        }

    @classmethod
    def from_dict(cls, made: Mapping[str, Any]) -> SweepPoint:
        """Return the point that :meth:`to_dict` wrote.

        Raises:
            KeyError: if an entry is missing.
            ValueError: if a number is none.
        """
        return cls(
            lr=float(made["lr"]),
            size=made["size"],
            seed=made["seed"],
            loss=float(made["loss"]),
            init_loss=float(made["init_loss"]),
            signals={name: float(value) for name, value in made["signals"].items()},
            stopped_at=made["stopped_at"],
        )
