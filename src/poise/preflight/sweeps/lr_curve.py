"""The curve of final loss against learning rate: the result of a sweep at one size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True, eq=False)
class LRCurve:
    """Final loss as a function of the learning rate, over seeds. Lower is better.

    Args:
        lrs: learning rates, shape (lrs,), positive and strictly increasing.
        losses: final validation loss, shape (lrs,) or (lrs, seeds); NaN or infinite for a run that diverged.
        init_losses: loss at initialisation, finite; a scalar or of the shape of ``losses``.

    Raises:
        ValueError: if a learning rate is not positive or they do not increase, shapes disagree, or a loss at
            initialisation is missing.
    """

    lrs: Float[np.ndarray, lrs]
    losses: Float[np.ndarray, "lrs seeds"]
    init_losses: Float[np.ndarray, "lrs seeds"]

    def __init__(self, lrs: ArrayLike, losses: ArrayLike, init_losses: ArrayLike) -> None:
        rates, final = np.asarray(lrs, dtype=float), np.asarray(losses, dtype=float)
        require_learning_rates(rates)
        if rates.size > 1 and not (np.diff(rates) > 0).all():
            raise ValueError(f"lrs must be strictly increasing, got {rates.tolist()}")
        if final.ndim not in (1, 2) or final.shape[0] != rates.size or final.size == 0:
            raise ValueError(f"losses must have shape ({rates.size},) or ({rates.size}, seeds), got {final.shape}")
        initial = np.asarray(init_losses, dtype=float)
        if initial.shape not in ((), final.shape):
            raise ValueError(f"init_losses must be a scalar or have shape {final.shape}, got {initial.shape}")
        if not np.isfinite(initial).all():
            raise ValueError("init_losses must be finite: without the loss at initialisation sensitivity is undefined")
        object.__setattr__(self, "lrs", rates)
        object.__setattr__(self, "losses", final.reshape(rates.size, -1))
        object.__setattr__(self, "init_losses", np.broadcast_to(initial, final.shape).reshape(rates.size, -1))

    @property
    def diverged(self) -> Bool[np.ndarray, "lrs seeds"]:
        """Which runs ended no better than they began (NaN and infinity included)."""
        return ~(self.losses < self.init_losses)

    @property
    def effective_losses(self) -> Float[np.ndarray, "lrs seeds"]:
        """The losses, with the loss at initialisation in place of those of diverged runs."""
        return np.where(self.diverged, self.init_losses, self.losses)

    @property
    def best_lr(self) -> float:
        """Learning rate of the lowest effective loss, averaged over seeds."""
        return float(self.lrs[self.effective_losses.mean(axis=1).argmin()])

    @property
    def best_loss(self) -> float:
        """Lowest effective loss, averaged over seeds."""
        return float(self.effective_losses.mean(axis=1).min())

    def within(self, low: float, high: float) -> LRCurve:
        """Return the part of the curve with ``low <= lr <= high`` (up to rounding).

        Raises:
            ValueError: if no learning rate lies there.
        """
        keep = (self.lrs >= low * (1 - 1e-9)) & (self.lrs <= high * (1 + 1e-9))
        if not keep.any():
            raise ValueError(
                f"lr_range must hold a learning rate of the curve {self.lrs.tolist()}, got ({low}, {high})"
            )
        return LRCurve(self.lrs[keep], self.losses[keep], self.init_losses[keep])


def require_learning_rates(lrs: Float[np.ndarray, lrs]) -> None:
    """Raise ``ValueError`` unless ``lrs`` is a list of distinct positive numbers."""
    if lrs.ndim != 1 or lrs.size == 0:
        raise ValueError(f"lrs must be a list of learning rates, got shape {lrs.shape}")
    if not (np.isfinite(lrs).all() and (lrs > 0).all()):
        raise ValueError(f"lrs must be positive and finite, got {lrs.tolist()}")
    if np.unique(lrs).size < lrs.size:
        raise ValueError(f"lrs must be distinct, got {lrs.tolist()}")
