"""How alike the ranked lists of two trainings of a recommender are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from poise.recsys.average_overlap import average_overlap
from poise.recsys.overlap_of_scores import Ranking, weighted_overlap
from poise.recsys.rank_weights import check_persistence
from poise.recsys.ranked_lists import RankedList
from poise.recsys.ranks import check_scores
from poise.recsys.rbo import rbo
from poise.recsys.topk_jaccard import topk_jaccard

_BLOCK = 4_000_000  # scores that are ranked at a time, so that large matrices need little memory


@dataclass(frozen=True, slots=True, eq=False)
class RankListSensitivity:
    """How alike the ranked lists of two trainings are, list by list; 1 is identical, lower is more sensitive.

    Attributes:
        jaccard: top-k Jaccard similarity of each pair of lists.
        rbo: extrapolated rank-biased overlap of each pair.
        average_overlap: average overlap of each pair over all places; near 1 even where the first places differ.
        k: places that ``jaccard`` looks at.
        p: persistence of ``rbo``.
        depth: places that ``rbo`` and ``average_overlap`` look at: the length of the (longest) list.
    """

    jaccard: Float[np.ndarray, " lists"]
    rbo: Float[np.ndarray, " lists"]
    average_overlap: Float[np.ndarray, " lists"]
    k: int
    p: float
    depth: int

    def __str__(self) -> str:
        return (
            f"Jaccard@{self.k} {self.jaccard.mean():.4f}, RBO (p = {self.p:g}, depth {self.depth}) "
            f"{self.rbo.mean():.4f}, average overlap (depth {self.depth}) {self.average_overlap.mean():.4f}, "
            f"mean of {len(self.rbo)} lists"
        )


def rank_list_sensitivity(
    a: Float[np.ndarray, "lists items"] | Sequence[RankedList],
    b: Float[np.ndarray, "lists items"] | Sequence[RankedList],
    k: int = 10,
    p: float = 0.9,
    *,
    exclude: Bool[np.ndarray, "lists items"] | None = None,
) -> RankListSensitivity:
    """Compare the ranked lists of two trainings, one pair of lists per user or per test event.

    Args:
        a: scores of the first training, shape (lists, items), higher is better; or ranked lists of items, each from
            its first place on (they may be short and hold different items). Minus infinity puts an item last.
        b: the same of the second training, list by list.
        k: places of the top-k Jaccard similarity; 10 by default.
        p: persistence of the rank-biased overlap, in (0, 1).
        exclude: with scores, items that are left out of a list (already seen by the user), shape (lists, items).

    Returns:
        Three similarities for each list. Tied scores are compared in expectation over their orders, so the order of
        the items in memory does not matter. Identical lists give exactly 1.

    Raises:
        ValueError: if shapes differ, scores hold NaN, ``k`` is larger than a list of items, ``p`` is out of range, a
            list is empty or holds an item twice, or all items of a list are excluded.

    References:
        Oh, Ustun, McAuley, Kumar, "Rank List Sensitivity of Recommender Systems to Interaction Perturbations", CIKM
        2022, arXiv:2201.12686.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[3.0, 2.0, 1.0, 0.0]])
        >>> rank_list_sensitivity(scores, scores[:, ::-1], k=2).jaccard
        array([0.])
    """
    check_persistence(p, one_allowed=False)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    if _are_scores(a) and _are_scores(b):
        return _compare_scores(np.asarray(a, float), np.asarray(b, float), k, p, exclude)
    if exclude is not None:
        raise ValueError("exclude can be given with scores only: leave the items out of ranked lists")
    return _compare_lists(list(a), list(b), k, p)


def _are_scores(lists: object) -> bool:
    return isinstance(lists, np.ndarray) and lists.dtype.kind == "f"


def _compare_lists(a: Sequence[RankedList], b: Sequence[RankedList], k: int, p: float) -> RankListSensitivity:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a and b must hold the same number of lists, at least one, got {len(a)} and {len(b)}")
    pairs = [(x, y, min(k, max(len(x), len(y)))) for x, y in zip(a, b, strict=True)]
    return RankListSensitivity(
        np.array([topk_jaccard(x, y, depth) for x, y, depth in pairs]),
        np.array([rbo(x, y, p, extrapolate=True) for x, y, _ in pairs]),
        np.array([average_overlap(x, y) for x, y, _ in pairs]),
        k,
        p,
        max(max(len(x), len(y)) for x, y, _ in pairs),
    )


def _compare_scores(
    a: Float[np.ndarray, "lists items"],
    b: Float[np.ndarray, "lists items"],
    k: int,
    p: float,
    exclude: Bool[np.ndarray, "lists items"] | None,
) -> RankListSensitivity:
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape (lists, items), got {a.shape} and {b.shape}")
    check_scores(a, "a")
    check_scores(b, "b")
    if exclude is not None:
        return _compare_kept(a, b, k, p, exclude)
    if k > a.shape[1]:
        raise ValueError(f"k must be at most the number of items, {a.shape[1]}, got {k}")
    rows = max(1, _BLOCK // a.shape[1])
    blocks = [_compare_block(a[i : i + rows], b[i : i + rows], k, p) for i in range(0, len(a), rows)]
    jaccard, biased, average = np.concatenate(blocks, axis=1)
    return RankListSensitivity(jaccard, biased, average, k, p, a.shape[1])


def _compare_kept(
    a: Float[np.ndarray, "lists items"],
    b: Float[np.ndarray, "lists items"],
    k: int,
    p: float,
    exclude: Bool[np.ndarray, "lists items"],
) -> RankListSensitivity:
    """Lists of different lengths, so one by one."""
    if exclude.shape != a.shape:
        raise ValueError(f"exclude must have the shape of the scores, {a.shape}, got {exclude.shape}")
    kept = ~exclude.astype(bool)
    if not kept.any(1).all():
        raise ValueError(f"exclude must leave an item in every list, got none in list {np.argmin(kept.any(1))}")
    found = [
        _compare_block(x[keep][None], y[keep][None], min(k, int(keep.sum())), p)
        for x, y, keep in zip(a, b, kept, strict=True)
    ]
    jaccard, biased, average = np.concatenate(found, axis=1)
    return RankListSensitivity(jaccard, biased, average, k, p, int(kept.sum(1).max()))


def _compare_block(
    a: Float[np.ndarray, "lists items"], b: Float[np.ndarray, "lists items"], k: int, p: float
) -> Float[np.ndarray, "3 lists"]:
    first, second = Ranking.of(a), Ranking.of(b)
    here, there = first.membership(k), second.membership(k)
    jaccard = np.minimum(here, there).sum(1) / np.maximum(here, there).sum(1)
    # All items are in both lists, so at the last place the agreement is 1, and goes on to be 1.
    biased = weighted_overlap(first, second, p) + p ** a.shape[1]
    average = weighted_overlap(first, second, 1.0)
    same = _equal(first, second)
    return np.where(same, 1.0, np.clip(np.stack([jaccard, biased, average]), 0.0, 1.0))


def _equal(a: Ranking, b: Ranking) -> Shaped[np.ndarray, " lists"]:
    """Lists that rank alike: rounding of their sums would miss 1 by 1e-16."""
    return ((a.first == b.first) & (a.size == b.size)).all(1)
