"""Samples whose distribution is shifted by a chosen amount in a chosen direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from poise.evidence.overlap import effective_sample_size


@dataclass(frozen=True, slots=True, eq=False)
class TiltSample:
    """A sample drawn with weights that grow exponentially with a score.

    Args:
        indices: rows that were drawn, with replacement.
        weights: probability of each row, sums to 1.
        exponent: of the tilt.
    """

    indices: Int64[np.ndarray, " size"]
    weights: Float[np.ndarray, " rows"]
    exponent: float


def tilt_sample(score: ArrayLike, ess: float, size: int, seed: int = 0) -> TiltSample:
    r"""Draw rows with probabilities proportional to :math:`e^{t s_i}`, which shifts them towards large scores.

    Args:
        score: one finite number for each row; rows with larger ones are drawn more often.
        ess: effective sample size of the weights as a fraction of the rows, in (0, 1]: 1 is no shift. It sets the
            exponent :math:`t \ge 0`.
        size: number of rows that are drawn.
        seed: of the draw.

    Raises:
        ValueError: if the score is not finite, ``ess`` is outside (0, 1], ``size`` is below 1, or no exponent gives
            this ``ess`` (as many rows share the largest score, or all are equal).
    """
    s = np.asarray(score, dtype=np.float64)
    if s.ndim != 1 or not len(s) or not np.isfinite(s).all():
        raise ValueError(f"score must be one-dimensional and finite, got shape {s.shape}")
    if not 0 < ess <= 1:
        raise ValueError(f"ess must lie in (0, 1], got {ess!r}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    exponent = _exponent(s, ess)
    weights = _tilted(s, exponent)
    indices = np.random.default_rng(seed).choice(len(s), size=size, p=weights)
    return TiltSample(indices.astype(np.int64), weights, exponent)


def _tilted(s: np.ndarray, exponent: float) -> np.ndarray:
    w = np.exp(exponent * (s - s.max()))
    return w / w.sum()


def _exponent(s: np.ndarray, ess: float) -> float:
    if ess == 1.0:
        return 0.0
    spread, top = s.max() - s.min(), np.isclose(s, s.max(), rtol=0, atol=0).sum() / len(s)
    if spread == 0 or top >= ess:
        raise ValueError(
            f"ess={ess!r} cannot be reached: the largest score is that of a fraction {top:.3g} of the rows"
        )

    def excess(exponent: float) -> float:
        return effective_sample_size(_tilted(s, exponent)) / len(s) - ess

    high = 1.0 / spread
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-12 / spread, rtol=8.9e-16))
