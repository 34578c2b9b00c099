"""Ranks of scored items, with tied scores treated alike whatever the order of the items."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def mid_ranks(scores: Float[np.ndarray, "lists items"]) -> Float[np.ndarray, "lists items"]:
    """Return the rank of each item in its list, from 1 for the highest score; tied items share their mean rank.

    Args:
        scores: shape (lists, items), finite or minus infinity.

    Raises:
        ValueError: if ``scores`` has another shape or holds NaN.
    """
    first, size = tie_groups(scores)
    return first + (size - 1) / 2


def tie_groups(
    scores: Float[np.ndarray, "lists items"],
) -> tuple[Int[np.ndarray, "lists items"], Int[np.ndarray, "lists items"]]:
    """Return for each item the first rank (from 1) and the size of the group of items with its score.

    Args:
        scores: shape (lists, items).

    Raises:
        ValueError: if ``scores`` has another shape or holds NaN.
    """
    check_scores(scores, "scores")
    lists, items = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, 1)
    starts: Bool[np.ndarray, "lists items"] = np.ones(scores.shape, bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = np.arange(items)
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    ends = np.ones(scores.shape, bool)
    ends[:, :-1] = starts[:, 1:]
    last = np.minimum.accumulate(np.where(ends, place, items)[:, ::-1], axis=1)[:, ::-1]
    firsts, sizes = np.empty((2, lists, items), np.int64)
    np.put_along_axis(firsts, order, first + 1, 1)
    np.put_along_axis(sizes, order, last - first + 1, 1)
    return firsts, sizes


def check_scores(scores: np.ndarray, name: str) -> None:
    """Raise if a matrix of scores cannot be ranked.

    Raises:
        ValueError: if it is not of shape (lists, items) with at least one of each, or holds NaN.
    """
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"{name} must have shape (lists, items) with at least one of each, got {scores.shape}")
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"{name} must not hold NaN, got NaN for list {row}, item {column}")
