"""z-loss: keep the softmax's normaliser near one, so that output logits do not drift."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

_warned_devices: set[torch.device] = set()


def z_loss(logits: Float[Tensor, ...], coef: float = 1e-4, dim: int = -1) -> Float[Tensor, ""]:
    r"""Penalise softmax normalisers that are far from one.

    .. math:: c \cdot \mathrm{mean}(\log^2 Z), \qquad Z = \sum_j \exp(y_j)

    Softmax does not change with a shift common to all logits, so only this term (or weight decay on the head) keeps
    their mean near zero. At its minimum the predicted probabilities are unchanged.

    Args:
        logits: unnormalised scores, in nats.
        coef: weight of the term.
        dim: dimension of the classes.

    Returns:
        A scalar to add to the loss, float32 or wider.

    Raises:
        ValueError: if ``coef`` is negative or not finite.

    Warns:
        UserWarning: if the logits seem to be probabilities.

    References:
        Chowdhery et al., "PaLM", 2022, arXiv:2204.02311; Wortsman et al., ICLR 2024, arXiv:2309.14322.

    Example:
        >>> logits = torch.randn(8, 50)
        >>> loss = F.cross_entropy(logits, torch.randint(50, (8,))) + z_loss(logits)
    """
    _require_coefficient(coef)
    _warn_if_probabilities(logits, dim)
    return coef * _log_normaliser(logits, dim).square().mean()


class ZLoss(nn.Module):
    """Module form of :func:`z_loss`, to be added to a loss.

    Args:
        coef: weight of the term.
        dim: dimension of the classes.

    Raises:
        ValueError: if ``coef`` is negative or not finite.

    References:
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """

    def __init__(self, coef: float = 1e-4, dim: int = -1) -> None:
        super().__init__()
        _require_coefficient(coef)
        self.coef, self.dim = coef, dim

    def forward(self, logits: Float[Tensor, ...]) -> Float[Tensor, ""]:
        """Return the scalar term."""
        return z_loss(logits, self.coef, self.dim)

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"coef={self.coef}, dim={self.dim}"


def cross_entropy_with_z_loss(
    input: Float[Tensor, ...],
    target: Shaped[Tensor, ...],
    weight: Float[Tensor, classes] | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    coef: float = 1e-4,
) -> Float[Tensor, ...]:
    r"""Cross entropy plus :func:`z_loss`; takes the place of ``torch.nn.functional.cross_entropy``.

    The z term of a position is :math:`c \log^2 Z`. Ignored positions have none, and class weights do not change it: it
    depends on the logits, not on the label. ``reduction="mean"`` averages it over the positions that are not ignored.

    Args:
        input: logits, classes in dimension 1 (dimension 0 if there is no batch).
        target: class indices, or class probabilities of the shape of ``input``.
        weight: weight of each class in the cross entropy.
        ignore_index: index that marks positions to leave out; only with class indices.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: as in torch, in [0, 1].
        coef: weight of the z term.

    Raises:
        ValueError: if ``coef`` is negative or not finite, or ``reduction`` is unknown.

    Warns:
        UserWarning: if ``input`` seems to hold probabilities.

    References:
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """
    _require_coefficient(coef)
    dim = 0 if input.ndim == 1 else 1
    loss = F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    _warn_if_probabilities(input, dim)
    term = coef * _log_normaliser(input, dim).square()
    if target.is_floating_point():
        return loss + (term if reduction == "none" else term.mean() if reduction == "mean" else term.sum())
    kept = target != ignore_index
    term = torch.where(kept, term, 0.0)
    if reduction == "none":
        return loss + term
    return loss + (term.sum() / kept.sum() if reduction == "mean" else term.sum())


def _log_normaliser(logits: Tensor, dim: int) -> Tensor:
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.logsumexp(wide, dim)


def _require_coefficient(coef: float) -> None:
    if not (math.isfinite(coef) and coef >= 0):
        raise ValueError(f"coef must be finite and not negative, got {coef!r}")


def _warn_if_probabilities(logits: Tensor, dim: int) -> None:
    """Check the sum of one row, and of all rows only if that one is suspicious.

    On an accelerator this is done once per process, because it waits for the device.
    """
    if torch.compiler.is_compiling() or logits.numel() == 0 or logits.shape[dim] < 2:
        return
    if logits.device.type != "cpu":
        if logits.device in _warned_devices:
            return
        _warned_devices.add(logits.device)
    rows = logits.detach().movedim(dim, -1).reshape(-1, logits.shape[dim])
    tolerance = 1e-3 if rows.dtype in (torch.float32, torch.float64) else 2e-2
    if abs(float(rows[0].sum()) - 1) < tolerance and _are_distributions(rows, tolerance):
        warnings.warn(
            "these seem to be probabilities, not logits (every row lies in [0, 1] and sums to 1): "
            "pass the scores before softmax",
            UserWarning,
            stacklevel=3,
        )


def _are_distributions(rows: Tensor, tolerance: float) -> bool:
    inside = (rows >= 0).all() & (rows <= 1).all()
    return bool(inside & ((rows.float().sum(-1) - 1).abs() < tolerance).all())
