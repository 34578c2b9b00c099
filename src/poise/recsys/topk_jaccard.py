"""Jaccard similarity of the first places of two ranked lists."""

from __future__ import annotations

from poise.recsys.ranked_lists import RankedList, entry_depths
from poise.recsys.rbo import first_places


def topk_jaccard(a: RankedList, b: RankedList, k: int = 10) -> float:
    """Return how many of the items in either top k are in both, as a fraction.

    Args:
        a: items of one list from the first place on, each once.
        b: items of the other.
        k: number of places that count; 10 by default.

    Raises:
        ValueError: if a list is empty or holds an item twice, or ``k`` is not in 1 .. length of the longer list.

    Example:
        >>> round(topk_jaccard([1, 2, 3], [2, 3, 4], k=3), 3)
        0.5
    """
    a, b = first_places(a, b, k)
    shared = len(entry_depths(a, b))
    return shared / (len(a) + len(b) - shared)
