r"""The probability that a Lanczos run from a random vector missed an eigenvalue that matters.

After j steps the next basis vector is :math:`q_{j+1} = p_j(A) q_1` with
:math:`p_j(x) = \prod_i (x - \theta_i) / \prod_i \beta_i`. It has norm 1, so that an eigenvalue at x in which the start
has the component c satisfies :math:`|c\, p_j(x)| \le 1`. Where p_j is large, an eigenvalue can only have stayed unseen
because the random start hardly had a component along its vector, and how likely that is, is known.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from poise.curvature.eigen.eigen_result import Which
from poise.curvature.eigen.ritz import select

NEAR = 0.05
"""An unseen eigenvalue further out than this, relative to the value found, is always searched for."""


def log_growth(
    x: Float[np.ndarray, " k"], roots: Float[np.ndarray, " m"], betas: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " k"]:
    """Return ``log |p(x)|`` of the polynomial with these roots over the product of ``betas``."""
    with np.errstate(divide="ignore"):
        return np.log(np.abs(x[:, None] - roots[None, :])).sum(1) - np.log(betas).sum()


def needed_growth(n: int, risk: float) -> float:
    """Return the ``log |p(x)|`` beyond which an eigenvalue at x is unseen with probability ``risk`` at most.

    One component of a random unit vector of n entries has a density of at most ``sqrt(n / (2 pi))``.

    References:
        van Dorsselaer, Hochstenbach and van der Vorst, "Computing probabilistic bounds for extreme eigenvalues of
        symmetric matrices with the Lanczos method", SIAM J. Matrix Analysis 2001.
    """
    return math.log(math.sqrt(2 * n / math.pi) / risk)


def suspects(
    theta: Float[np.ndarray, " m"], wanted: Int[np.ndarray, " k"], which: Which, tol: float
) -> Float[np.ndarray, " s"]:
    """Return where an unseen eigenvalue would spoil the wanted ones: just outside of each.

    The place is half as far as the next value inwards, at most 5 % and at least ``tol`` of the value, and never more
    than half way to the next value outwards. Between two values closer than ``tol`` an unseen one would change
    nothing by more than ``tol``.

    Args:
        theta: Ritz values, ascending, at least two.
        wanted: places of the wanted ones.
        which: the end of the spectrum that is wanted.
        tol: relative tolerance.
    """
    outward = _outward(theta, wanted, which)
    value, least = theta[wanted], tol * np.abs(theta[wanted])
    inner = np.abs(value - theta[np.clip(wanted - outward, 0, len(theta) - 1)])
    distance = np.maximum(np.minimum(inner / 2, NEAR * np.abs(value)), least)
    beyond = wanted + outward
    last = (beyond < 0) | (beyond >= len(theta))
    outer = np.where(last, np.inf, np.abs(value - theta[np.clip(beyond, 0, len(theta) - 1)]))
    distance = np.minimum(distance, outer / 2)
    return (value + outward * distance)[distance >= least]


def _outward(theta: np.ndarray, wanted: np.ndarray, which: Which) -> np.ndarray:
    if which == "LA":
        return np.ones_like(wanted)
    if which == "SA":
        return -np.ones_like(wanted)
    if which == "LM":
        return np.where(theta[wanted] >= 0, 1, -1)
    upper = select(theta, len(wanted), "BE")[: (len(wanted) + 1) // 2]
    return np.where(np.isin(wanted, upper), 1, -1)
