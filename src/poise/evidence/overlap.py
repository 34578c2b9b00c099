"""How much of a sample remains after weighting, and where one sample has no counterpart in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Overlap:
    """What every report of a weighted estimate says about its weights.

    Args:
        rows: number of weighted rows.
        effective_sample_size: number of equally weighted rows with the same variance of a mean.
        clipped: rows whose weight or probability was changed to stay within bounds.
        unsupported: rows of the target that have next to no counterpart among the weighted rows.
        target_rows: number of rows of the target; 0 where there is none.
        largest_weight: fraction of all weight that the heaviest row has.
    """

    rows: int
    effective_sample_size: float
    clipped: int
    unsupported: int
    target_rows: int
    largest_weight: float

    @property
    def unsupported_fraction(self) -> float:
        """Unsupported rows by rows of the target; 0 without a target."""
        return self.unsupported / self.target_rows if self.target_rows else 0.0

    def __str__(self) -> str:
        words = [
            f"effective sample size {self.effective_sample_size:,.0f} of {self.rows:,}",
            rows_clipped(self.clipped),
        ]
        if self.target_rows:
            words.append(f"{self.unsupported:,} of {self.target_rows:,} rows outside the support")
        return ", ".join(words)


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """Probabilities within bounds, and how many were not.

    Args:
        values: probabilities in ``[clip, 1 - clip]``.
        changed: which rows were outside.
    """

    values: Float[np.ndarray, " rows"]
    changed: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows that were changed."""
        return int(self.changed.sum())

    def __str__(self) -> str:
        return rows_clipped(self.rows)


def rows_clipped(rows: int) -> str:
    """Return ``"1 row clipped"`` or ``"12 rows clipped"``."""
    return f"{rows:,} row{'' if rows == 1 else 's'} clipped"


def effective_sample_size(weights: ArrayLike) -> float:
    """Return Kish's effective sample size, ``(sum w)^2 / sum w^2``.

    Args:
        weights: finite, not negative, at least one positive.

    Raises:
        ValueError: if they are not.

    References:
        L. Kish (1965), Survey Sampling, Wiley.

    Example:
        >>> effective_sample_size([1, 1, 1, 1]), effective_sample_size([1, 0, 0, 0])
        (4.0, 1.0)
    """
    w = checked_weights(weights)
    w = w / w.max()  # squares of large weights would overflow
    return float(w.sum() ** 2 / (w**2).sum())


def overlap(weights: ArrayLike, *, clipped: int = 0, unsupported: int = 0, target_rows: int = 0) -> Overlap:
    """Return what weights leave of a sample.

    Args:
        weights: one for each row.
        clipped: rows whose weight or probability was changed to stay within bounds.
        unsupported: rows of the target without a counterpart.
        target_rows: number of rows of the target.

    Raises:
        ValueError: if the weights are not finite, negative, or all zero.
    """
    w = checked_weights(weights)
    return Overlap(len(w), effective_sample_size(w), clipped, unsupported, target_rows, float(w.max() / w.sum()))


def clip_probabilities(probabilities: ArrayLike, clip: float) -> Clipped:
    """Move probabilities into ``[clip, 1 - clip]`` and count those that were outside.

    Args:
        probabilities: in [0, 1]; 0 and 1 are allowed and counted.
        clip: smallest probability that is left, in [0, 0.5); 0 changes nothing.

    Raises:
        ValueError: if a probability is NaN or outside [0, 1], or ``clip`` outside [0, 0.5).

    Example:
        >>> print(clip_probabilities([0.001, 0.5], 0.01))
        1 row clipped
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        wrong = p[~((p >= 0) & (p <= 1))][0]
        raise ValueError(f"probabilities must lie in [0, 1], got {wrong}")
    if not 0 <= clip < 0.5:
        raise ValueError(f"clip must lie in [0, 0.5), got {clip!r}")
    inside = np.clip(p, clip, 1 - clip)
    return Clipped(inside, inside != p)


def checked_weights(weights: ArrayLike) -> Float[np.ndarray, " rows"]:
    """Return weights as a float array, or raise ValueError."""
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or not len(w):
        raise ValueError(f"weights must be one-dimensional with at least one entry, got shape {w.shape}")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"weights must be finite and not negative, got {w[~(np.isfinite(w) & (w >= 0))][0]}")
    if not w.any():
        raise ValueError("weights must not all be zero")
    return w
