"""Weights of the depths of a ranked list, for measures that compare lists at every depth."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float


@lru_cache(maxsize=64)
def depth_weights(depth: int, p: float) -> Float[np.ndarray, " depth"]:
    r"""Return the weights :math:`w_d` of the agreements at depths 1 to ``depth``; read-only.

    :math:`w_d = (1 - p) p^{d - 1}` for rank-biased overlap, ``1 / depth`` for average overlap (p = 1).

    Args:
        depth: number of depths.
        p: persistence in (0, 1]; 1 weights all depths alike.
    """
    weights = np.full(depth, 1 / depth) if p == 1 else (1 - p) * p ** np.arange(depth)
    weights.flags.writeable = False
    return weights


@lru_cache(maxsize=64)
def entry_weights(depth: int, p: float) -> Float[np.ndarray, " depth"]:
    r"""Return :math:`W_k = \sum_{d \ge k} w_d / d` for k = 1 to ``depth``; read-only.

    An item that both lists hold enters their overlap at the greater of its two ranks, k, and adds :math:`1/d` to the
    agreement at every depth from there on: its whole contribution is :math:`W_k`.

    Args:
        depth: number of depths.
        p: persistence in (0, 1].
    """
    weights = np.cumsum((depth_weights(depth, p) / np.arange(1, depth + 1))[::-1])[::-1].copy()
    weights.flags.writeable = False
    return weights


def check_persistence(p: float, *, one_allowed: bool) -> None:
    """Raise if a persistence is out of range.

    Raises:
        ValueError: if ``p`` is not in (0, 1), or (0, 1] where 1 has a meaning.
    """
    if not 0 < p < 1 and not (one_allowed and p == 1):
        hint = "" if one_allowed else "; p = 1 is average_overlap"
        raise ValueError(f"p must be in (0, 1{']' if one_allowed else ')'}, got {p!r}{hint}")
