"""How well ranked lists predict the next item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from poise.recsys.ranks import check_scores


@dataclass(frozen=True, slots=True, eq=False)
class NextItemAccuracy:
    """Accuracy of each test event.

    Attributes:
        rank: rank of the item that came, from 1; tied items share their mean rank.
        reciprocal_rank: its inverse, whose mean is the MRR.
        recall: 1 if the rank is at most ``k``, else 0.
        ndcg: 1 / log2(rank + 1) if the rank is at most ``k``, else 0.
        k: places that ``recall`` and ``ndcg`` look at.
    """

    rank: Float[np.ndarray, " events"]
    reciprocal_rank: Float[np.ndarray, " events"]
    recall: Float[np.ndarray, " events"]
    ndcg: Float[np.ndarray, " events"]
    k: int


def next_item_accuracy(
    scores: Float[np.ndarray, "events items"], items: Int[np.ndarray, " events"], k: int = 10
) -> NextItemAccuracy:
    """Return the rank of the item that came next, and what follows from it, for each test event.

    Args:
        scores: shape (events, items), higher is better.
        items: column of the item that came, for each event.
        k: places that count for recall and NDCG.

    Raises:
        ValueError: if shapes differ, scores hold NaN, or an item is out of range.
    """
    check_scores(scores, "scores")
    if items.shape != (len(scores),):
        raise ValueError(f"items must have shape ({len(scores)},), one for each list of scores, got {items.shape}")
    if items.min() < 0 or items.max() >= scores.shape[1]:
        raise ValueError(f"items must be columns of scores, 0 .. {scores.shape[1] - 1}, got {items.max()}")
    own = np.take_along_axis(scores, items[:, None], 1)
    rank = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    hit = rank <= k
    return NextItemAccuracy(rank, 1 / rank, hit.astype(float), np.where(hit, 1 / np.log2(rank + 1), 0.0), k)
