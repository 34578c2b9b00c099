"""Rank-biased overlap of two ranked lists."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from poise.recsys.rank_weights import check_persistence, depth_weights, entry_weights
from poise.recsys.ranked_lists import RankedList, entry_depths


def rbo(a: RankedList, b: RankedList, p: float = 0.9, k: int | None = None, *, extrapolate: bool = False) -> float:
    r"""Return the rank-biased overlap of two ranked lists, which weights the first places most.

    With :math:`X_d` items shared among the first d of both lists,

    .. math:: \mathrm{RBO} = (1 - p) \sum_{d=1}^{D} p^{d-1} X_d / d,

    where D is the length of the longer list. This sum is of the depths that were seen, so identical lists of n items
    give :math:`1 - p^n`. ``extrapolate=True`` assumes that the agreement goes on beyond the lists (Webber's equation
    32, which also holds for lists of different lengths): identical lists then give exactly 1.

    Args:
        a: items of one list from the first place on: any hashable values, each once. Arrays of integers that are
            permutations of 0 .. n - 1 are compared fastest.
        b: items of the other list; it may hold other items and be of another length.
        p: persistence in (0, 1): the first :math:`1 / (1 - p)` places carry most of the weight. 0.9 by default.
        k: if given, only the first ``k`` places of both lists count.
        extrapolate: whether to go on beyond the last place seen.

    Returns:
        A number in [0, 1]; higher is more alike.

    Raises:
        ValueError: if a list is empty or holds an item twice, ``p`` is out of range (for p = 1 see
            :func:`average_overlap`), or ``k`` is not in 1 .. length of the longer list.

    References:
        Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010.

    Example:
        >>> round(rbo("abcde", "abced"), 4), rbo("abcde", "abcde", extrapolate=True)
        (0.4079, 1.0)
    """
    check_persistence(p, one_allowed=False)
    a, b = first_places(a, b, k)
    short, long = sorted((len(a), len(b)))
    depths = entry_depths(a, b)
    if not extrapolate:
        return float(entry_weights(long, p)[depths].sum())
    if len(depths) == long and (depths == np.sort(depths)).all() and list(a) == list(b):
        return 1.0  # what rounding of the sum would miss by 1e-16
    return _extrapolated(np.bincount(depths, minlength=long).cumsum(), short, long, p)


def _extrapolated(overlap: Float[np.ndarray, " long"], short: int, long: int, p: float) -> float:
    """Webber's equation 32: beyond its end the shorter list goes on to agree as it did at its end."""
    depth = np.arange(1, long + 1)
    at_short, at_long = overlap[short - 1], overlap[long - 1]
    beyond = np.where(depth > short, at_short * (depth - short) / (short * depth), 0.0)
    seen = float((depth_weights(long, p) * (overlap / depth + beyond)).sum())
    return seen + float((at_long - at_short) / long + at_short / short) * p**long


def first_places(a: RankedList, b: RankedList, k: int | None) -> tuple[RankedList, RankedList]:
    """Return the first ``k`` places of two lists, or the lists if ``k`` is ``None``.

    Raises:
        ValueError: if ``k`` is not in 1 .. length of the longer list.
    """
    if k is None:
        return a, b
    if not 1 <= k <= max(len(a), len(b)):
        raise ValueError(f"k must be in 1 .. {max(len(a), len(b))}, the length of the longer list, got {k!r}")
    return a[:k], b[:k]
