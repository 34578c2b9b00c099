"""The loss that keeps the order of earlier recommendations."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Reduction = Literal["sequence_sum", "mean"]


class RankPreservingLoss(nn.Module):
    r"""Keeps the order of the items that a reference model ranked first, and keeps them ahead of those that followed.

    With scores :math:`z`, reference items :math:`r_1, \dots, r_K` and competitors :math:`c_1, \dots, c_K`:

    .. math::
        l_1 = \mathrm{mean}_k \max(0, m - (z_{r_k} - z_{r_{k+1}})), \quad
        l_2 = \mathrm{mean}_k \max(0, m - (z_{r_k} - z_{c_k})).

    Args:
        margin: :math:`m` in units of the scores; 0.1 by default.
        order_weight: factor on :math:`l_1`.
        push_weight: factor on :math:`l_2`.
        reduction: ``"mean"`` over all positions, or ``"sequence_sum"``: the sum over sequences of their means, as in
            the published code, where the effective weight grows with the batch: a weight w there is w x batch here.

    Raises:
        ValueError: if ``margin`` is negative or ``reduction`` is unknown.

    References:
        Oh, Ustun, McAuley, Kumar, "FINEST: Stabilizing Recommendations by Rank-Preserving Fine-Tuning", TKDD 2024,
        arXiv:2402.03481.
    """

    def __init__(
        self,
        margin: float = 0.1,
        order_weight: float = 1.0,
        push_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin!r}")
        if reduction not in ("sequence_sum", "mean"):
            raise ValueError(f"reduction must be 'sequence_sum' or 'mean', got {reduction!r}")
        self.margin, self.order_weight, self.push_weight = margin, order_weight, push_weight
        self.reduction = reduction

    def forward(
        self,
        scores: Float[Tensor, "batch time items"],
        reference: Int[Tensor, "batch time k"],
        competitors: Int[Tensor, "batch time k"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, ""]:
        """Return the loss; 0 with a gradient of zero if no position counts.

        Args:
            scores: of every item at every position.
            reference: items to keep in order, the first place first.
            competitors: the items that followed them.
            mask: positions that count.

        Raises:
            ValueError: if shapes disagree, or an item is beyond the scores.
        """
        self._check(scores, reference, competitors, mask)
        chosen = scores[mask]
        kept, rivals = chosen.gather(1, reference[mask]), chosen.gather(1, competitors[mask])
        push = (self.margin - (kept - rivals)).clamp(min=0).mean(1)
        each = self.push_weight * push
        if kept.shape[1] > 1:
            each = each + self.order_weight * (self.margin + kept.diff(dim=1)).clamp(min=0).mean(1)
        if self.reduction == "mean":
            return each.sum() / max(1, len(each))
        sequence = mask.nonzero()[:, 0]
        return (each / mask.sum(1)[sequence]).sum()

    @staticmethod
    def _check(scores: Tensor, reference: Tensor, competitors: Tensor, mask: Tensor) -> None:
        places, shape = scores.shape[:2], tuple(scores.shape)
        if not (reference.shape == competitors.shape and reference.shape[:2] == mask.shape == places):
            got = f"{tuple(reference.shape)}, {tuple(competitors.shape)} and {tuple(mask.shape)}"
            raise ValueError(
                "reference and competitors must have shape (batch, time, k) and mask (batch, time) for scores of shape "
                f"{shape}, got {got}"
            )
        if mask.any() and int(max(reference[mask].max(), competitors[mask].max())) >= shape[-1]:
            raise ValueError(f"reference and competitors must be items below {shape[-1]}, the number of scores")
