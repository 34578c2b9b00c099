"""Spectral decoupling: a penalty on logits, so that a strong feature does not keep weaker ones from being learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
_BASES: dict[str, Loss] = {"bce": F.binary_cross_entropy_with_logits, "ce": F.cross_entropy}


def spectral_decoupling(
    logits: Float[Tensor, "n *classes"],
    coef: float = 0.1,
    center: Float[Tensor, " classes"] | Sequence[float] | float = 0.0,
    reduction: Literal["mean", "sum_classes"] = "mean",
) -> Float[Tensor, ""]:
    r"""Penalise logits that are far from their center.

    .. math:: c \cdot \mathrm{mean}\,(\hat y - \gamma)^2

    With cross entropy and this penalty instead of weight decay, every margin :math:`r` of a network that is linear in
    its parameters converges to :math:`\lambda r (1 + e^r) = 1` with :math:`\lambda = 2c`, whatever the strength of its
    features, so that no feature is starved. It does not help where the network learns a feature from the noise of the
    labels.

    Args:
        logits: scores, one row a sample; one column or none for two classes.
        coef: weight of the penalty.
        center: what the logits are pulled towards: a number, or one for each column.
        reduction: ``"mean"`` over all logits, or ``"sum_classes"``: sum over classes, mean over samples.

    Returns:
        A scalar to add to the loss, float32 or wider.

    Raises:
        ValueError: if ``coef`` is negative or not finite, ``center`` does not fit, or ``reduction`` is unknown.

    References:
        Pezeshki et al., "Gradient Starvation: A Learning Proclivity in Neural Networks", NeurIPS 2021,
        arXiv:2011.09468.

    Example:
        >>> logits = torch.randn(8, 10)
        >>> loss = F.cross_entropy(logits, torch.randint(10, (8,))) + spectral_decoupling(logits)
    """
    _require_coefficient(coef)
    if reduction not in ("mean", "sum_classes"):
        raise ValueError(f"reduction must be 'mean' or 'sum_classes', got {reduction!r}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    centers = torch.as_tensor(center, dtype=wide.dtype, device=wide.device)
    if centers.ndim > 0 and (logits.ndim < 2 or centers.shape != logits.shape[-1:]):
        raise ValueError(f"center must have one number per column of {tuple(logits.shape)}, got {tuple(centers.shape)}")
    square = (wide - centers).square()
    if reduction == "sum_classes" and logits.ndim > 1:
        square = square.sum(-1)
    return coef * square.mean()


def class_centered_decoupling(
    logits: Float[Tensor, "n *one"],
    target: Shaped[Tensor, "n *one"],
    centers: tuple[float, float],
    coef: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Pull the logits of each of two classes towards a center of its own, for classes of unequal size.

    .. math:: c \sum_{k \in \{0, 1\}} \mathrm{mean}_{i: y_i = k} (\hat y_i - \gamma_k)^2

    A class that a batch lacks contributes nothing.

    Args:
        logits: one score a sample.
        target: 0 or 1 for each score.
        centers: center of class 0 and of class 1.
        coef: weight of the penalty.

    Raises:
        ValueError: if ``coef`` is negative or not finite, or shapes differ.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.
    """
    _require_coefficient(coef)
    if logits.shape != target.shape:
        raise ValueError(f"target must have the shape of logits, {tuple(logits.shape)}, got {tuple(target.shape)}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = wide.new_zeros(())
    for label, center in enumerate(centers):
        chosen = target == label
        total = total + torch.where(chosen, (wide - center).square(), 0.0).sum() / chosen.sum().clamp(min=1)
    return coef * total


class SpectralDecoupling(nn.Module):
    """A classification loss plus :func:`spectral_decoupling`.

    Use weight decay 0 with it, and judge it on data where the strong feature fails.

    Args:
        base: ``"ce"``, ``"bce"`` (one logit a sample, targets 0 and 1), or a function ``(logits, target) -> loss``.
        coef: weight of the penalty.
        center: what the logits are pulled towards; with ``base="bce"`` a pair gives each class its own.
        reduction: as in :func:`spectral_decoupling`.

    Attributes:
        last: the loss and the penalty of the last call, detached.

    Raises:
        ValueError: if ``base`` is unknown, ``coef`` is negative or not finite; in ``forward`` if ``base="bce"`` and
            there is more than one logit a sample, or targets are not 0 and 1.

    References:
        Pezeshki et al., NeurIPS 2021, arXiv:2011.09468.
    """

    last: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        base: Literal["ce", "bce"] | Loss = "ce",
        coef: float = 0.1,
        center: float | Sequence[float] = 0.0,
        reduction: Literal["mean", "sum_classes"] = "mean",
    ) -> None:
        super().__init__()
        if isinstance(base, str) and base not in _BASES:
            raise ValueError(f"base must be 'ce', 'bce' or a function, got {base!r}")
        _require_coefficient(coef)
        self.base, self.coef, self.center, self.reduction = base, coef, center, reduction
        self.last = None

    def forward(self, logits: Float[Tensor, "n *classes"], target: Shaped[Tensor, "n *classes"]) -> Float[Tensor, ""]:
        """Return loss plus penalty; ``target`` is what ``base`` takes."""
        if self.base == "bce":
            logits, target = _binary(logits, target)
        base = _BASES[self.base] if isinstance(self.base, str) else self.base
        loss, penalty = base(logits, target), self._penalty(logits, target)
        self.last = loss.detach(), penalty.detach()
        return loss + penalty

    def _penalty(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.base == "bce" and isinstance(self.center, Sequence):
            low, high = self.center
            return class_centered_decoupling(logits, target, (low, high), self.coef)
        return spectral_decoupling(logits, self.coef, self.center, self.reduction)

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"coef={self.coef}, center={self.center}, reduction={self.reduction!r}"


def _binary(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One logit and one float target a sample, both flat."""
    if logits.numel() != target.numel() or (logits.ndim > 1 and logits.shape[-1] != 1):
        shapes = f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"base='bce' needs one logit and one target per sample, got {shapes}")
    # Only on the CPU: elsewhere the check would wait for the device.
    if target.device.type == "cpu" and not bool(((target == 0) | (target == 1)).all()):
        raise ValueError(f"target must hold 0 and 1 only, got values in [{target.min()}, {target.max()}]")
    return logits.reshape(-1), target.reshape(-1).to(logits.dtype)


def _require_coefficient(coef: float) -> None:
    if not (math.isfinite(coef) and coef >= 0):
        raise ValueError(f"coef must be finite and not negative, got {coef!r}")
