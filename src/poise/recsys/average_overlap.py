"""Average overlap of two ranked lists."""

from __future__ import annotations

from poise.recsys.rank_weights import entry_weights
from poise.recsys.ranked_lists import RankedList, entry_depths
from poise.recsys.rbo import first_places


def average_overlap(a: RankedList, b: RankedList, k: int | None = None) -> float:
    r"""Return the mean over all depths of the fraction of items that two ranked lists share.

    :math:`\frac1D \sum_{d=1}^{D} X_d / d`, where :math:`X_d` items are shared among the first d of both. All depths
    weigh alike, so over a whole catalogue the value is near 1 even if the first ten places differ: beside it belongs
    :func:`rbo` or :func:`topk_jaccard`.

    Args:
        a: items of one list from the first place on, each once.
        b: items of the other.
        k: if given, only the first ``k`` places count.

    Raises:
        ValueError: if a list is empty or holds an item twice, or ``k`` is not in 1 .. length of the longer list.

    References:
        Fagin, Kumar, Sivakumar, "Comparing top k lists", SIAM J. Discrete Math. 17(1), 2003.

    Example:
        >>> round(average_overlap("abcde", "edcba"), 10)
        0.4166666667
    """
    a, b = first_places(a, b, k)
    return float(entry_weights(max(len(a), len(b)), 1.0)[entry_depths(a, b)].sum())
