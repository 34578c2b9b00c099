"""The largest learning rate that still trains, and the first that does not."""

from __future__ import annotations

from dataclasses import dataclass

from poise.preflight.sweeps.lr_curve import LRCurve


@dataclass(frozen=True, slots=True)
class MaxTrainableLR:
    """The upper edge of the usable learning rates of a grid.

    Args:
        lr: the largest learning rate up to which every run trained; ``None`` if no learning rate did.
        first_failing: the next one of the grid; ``None`` if the grid ends before anything fails.
    """

    lr: float | None
    first_failing: float | None


def max_trainable_lr(curve: LRCurve, keep: float = 0.5) -> MaxTrainableLR:
    r"""Find how far the learning rate can be raised above its optimum before training fails.

    A run has trained if it keeps the fraction ``keep`` of what the best learning rate gains over the loss at
    initialisation: :math:`\ell_0 - \ell \ge \mathrm{keep} \, (\ell_0 - \ell^*)`. A learning rate is trainable if every
    seed trained there and at all rates between it and the optimum.

    Args:
        curve: losses over learning rates.
        keep: fraction in (0, 1]. Small models seldom diverge outright; they stop learning much earlier.

    Raises:
        ValueError: if ``keep`` is outside (0, 1].

    References:
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], got {keep!r}")
    if curve.diverged.all():
        return MaxTrainableLR(None, float(curve.lrs[0]))
    needed = keep * (curve.init_losses - curve.best_loss)
    gained = curve.init_losses - curve.effective_losses
    trained = ((gained >= needed) & ~curve.diverged).all(axis=1)
    last = None
    for lr, ok in zip(curve.lrs.tolist(), trained.tolist(), strict=True):
        if lr < curve.best_lr:
            continue
        if not ok:
            return MaxTrainableLR(last, lr)
        last = lr
    return MaxTrainableLR(last, None)
