"""How much predictions differ between trainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True, slots=True)
class Churn:
    """Disagreement of trainings about the same rows.

    Attributes:
        flip_rate: fraction of decisions that differ from the base's, mean over the other trainings.
        ambiguity: fraction of rows about which any of them disagrees with the base.
        discrepancy: largest fraction of decisions by which one of them differs from the base.
        per_row: fraction of the trainings that disagree with the base, row by row.
    """

    flip_rate: float
    ambiguity: float
    discrepancy: float
    per_row: Float[np.ndarray, " rows"]


def churn(
    base: Shaped[np.ndarray, " rows"], others: Shaped[np.ndarray, "trainings rows"], tolerance: float = 0.0
) -> Churn:
    """Compare the decisions of trainings with those of a base.

    Args:
        base: labels or numbers of the base.
        others: of the other trainings, one row each.
        tolerance: for numbers: a difference of at most so much is none.

    Raises:
        ValueError: if shapes disagree or there are no other trainings.
    """
    others = np.asarray(others)
    if others.ndim != 2 or not len(others) or others.shape[1:] != np.shape(base):
        raise ValueError(f"others must have shape (trainings, {len(base)}), at least one, got {others.shape}")
    differs = np.abs(others - base) > tolerance if tolerance else others != base
    return Churn(float(differs.mean()), float(differs.any(0).mean()), float(differs.mean(1).max()), differs.mean(0))
