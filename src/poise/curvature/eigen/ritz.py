"""Ritz values: which of them are wanted, and how far they are from eigenvalues."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from poise.curvature.eigen.eigen_result import Which

ROUNDING = 10.0
"""Error of a Ritz value by rounding alone, in units of eps times the largest Ritz value."""


def select(theta: Float[np.ndarray, " m"], k: int, which: Which) -> Int[np.ndarray, " k"]:
    """Return the places of the k wanted Ritz values, outermost first.

    Args:
        theta: ascending.
        k: how many.
        which: ``"LA"`` the largest, ``"SA"`` the smallest, ``"LM"`` those of largest magnitude, ``"BE"`` half from
            each end (one more from the upper end if k is odd), upper ones first.
    """
    m = len(theta)
    if which == "LA":
        return np.arange(m - 1, m - 1 - k, -1)
    if which == "SA":
        return np.arange(k)
    if which == "LM":
        return np.argsort(-np.abs(theta), kind="stable")[:k]
    upper = (k + 1) // 2
    return np.r_[np.arange(m - 1, m - 1 - upper, -1), np.arange(k - upper)]


def separated_bounds(
    theta: Float[np.ndarray, " k"], residuals: Float[np.ndarray, " k"], edge: float
) -> Float[np.ndarray, " k"]:
    r"""Return error bounds of the outermost Ritz values where ``edge`` is known to part them from all others.

    A residual r bounds the error. With E the root sum of squares of all k residuals and :math:`\eta` the distance of a
    value from the edge, so does :math:`2 E^2 / (\eta + \sqrt{\eta^2 + 4 E^2})`.

    Args:
        theta: the k wanted values.
        residuals: their residuals.
        edge: no other eigenvalue lies beyond it.

    References:
        Li and Li, "A note on eigenvalues of perturbed Hermitian matrices", Linear Algebra and its Applications 2005.
    """
    group = float(np.linalg.norm(residuals))
    gap = np.abs(theta - edge)
    apart = (np.sign(theta - edge) == np.sign(theta[0] - edge)) & (gap > 0)
    bound = 2 * group**2 / np.where(apart, gap + np.hypot(gap, 2 * group), np.inf)
    return np.where(apart, np.minimum(residuals, bound), residuals)


def rounding(theta: Float[np.ndarray, " m"], dtype: torch.dtype) -> float:
    """Return the error of every Ritz value that is due to rounding in products of this dtype."""
    return ROUNDING * torch.finfo(dtype).eps * float(np.abs(theta).max(initial=0.0))
