"""How much a perturbation of a stable system can grow before it decays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float

from poise.curvature import LinearOperator, numerical_abscissa, spectral_norm

_MOST_DOUBLINGS = 1100
"""From the smallest float to the largest: times that long are met where a fast system decays slowly."""

_QUIET_DOUBLINGS = 45
"""Doublings without growth after which no more is expected. Rounding has changed a rotation by a per cent by then."""

_RAISES = 1.5  # factor on the largest norm so far that counts as growth
_TAYLOR_TERMS = 14  # 0.15^15 / 15! is 3e-25
MOST_PRODUCTS = 500
TRANSIENT_LIMIT = 400
"""Up to this many unknowns the transient growth is computed."""


@dataclass(frozen=True, slots=True)
class NonNormality:
    """Growth that eigenvalues do not show, in the Euclidean norm of the state.

    Attributes:
        sigma_max: largest singular value of the Jacobian: the most that one step of a map can amplify.
        numerical_abscissa: largest eigenvalue of its symmetric part: the fastest growth of a flow at the start.
        transient_growth: the largest amplification over all times that were computed, at least 1; infinite beyond the
            largest float, ``None`` where the system is too large.

    References:
        Trefethen and Embree, "Spectra and Pseudospectra", Princeton University Press 2005, chapters 14 to 16.
    """

    sigma_max: float
    numerical_abscissa: float
    transient_growth: float | None


def non_normality_of_map(jacobian: Float[np.ndarray, "n n"]) -> NonNormality:
    """Return the transient growth of the powers of a matrix.

    The computed powers are 1, 3 and 5 times the powers of two.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        bases = [np.linalg.matrix_power(jacobian, odd) for odd in (1, 3, 5)]
    return _non_normality(jacobian, [_squares(base) for base in bases])


def non_normality_of_flow(jacobian: Float[np.ndarray, "n n"]) -> NonNormality:
    """Return the transient growth of the exponential of a matrix.

    The times form a geometric sequence of ratio 1.41, from a tenth of the shortest time scale.
    """
    shortest = 0.1 / max(_spectral_norm(jacobian), 1e-300)
    bases = [factor * shortest * jacobian for factor in (1.0, 2.0**0.5)]
    return _non_normality(jacobian, [_exponentials(base) for base in bases])


def non_normality_of_operator(operator: LinearOperator) -> NonNormality | None:
    """Return singular value and numerical abscissa of a large operator; ``None`` without transpose or if they are slow.

    Args:
        operator: the Jacobian.
    """
    generator = torch.Generator(operator.device).manual_seed(0)
    try:
        largest = spectral_norm(operator, generator=generator, max_matvecs=MOST_PRODUCTS)
        top = numerical_abscissa(operator, generator=generator, max_matvecs=MOST_PRODUCTS)
    except NotImplementedError:
        return None
    if not bool(largest.converged.all() and top.converged.all()):
        return None
    return NonNormality(float(largest.values[0]), float(top.values[0]), None)


def _non_normality(jacobian: np.ndarray, sequences: list[Iterator[np.ndarray]]) -> NonNormality:
    growth = max(1.0, *(_largest_norm(matrices) for matrices in sequences))
    return NonNormality(_spectral_norm(jacobian), _largest_eigenvalue(jacobian / 2 + jacobian.T / 2), growth)


def _squares(matrix: Float[np.ndarray, "n n"]) -> Iterator[Float[np.ndarray, "n n"]]:
    """Yield a matrix, its square, the square of that, and so on."""
    while True:
        yield matrix
        matrix = matrix @ matrix


def _exponentials(exponent: Float[np.ndarray, "n n"]) -> Iterator[Float[np.ndarray, "n n"]]:
    """Yield the exponentials of a matrix of norm below 0.15, of twice that matrix, of four times, and so on."""
    identity = np.eye(len(exponent))
    # What is doubled is the exponential less the identity: beside ones, a slow decay would be lost to rounding.
    change, term = exponent, exponent
    for k in range(2, _TAYLOR_TERMS + 1):
        term = term @ exponent / k
        change = change + term
    while True:
        yield identity + change
        change = 2 * change + change @ change


def _largest_norm(matrices: Iterator[Float[np.ndarray, "n n"]]) -> float:
    """Return the largest spectral norm of matrices each of which is the square of the one before."""
    largest, quiet, before = 0.0, 0, None
    for _ in range(_MOST_DOUBLINGS):
        with np.errstate(over="ignore", invalid="ignore"):
            matrix = next(matrices)
        if not np.isfinite(matrix).all():
            return math.inf
        norm = _spectral_norm(matrix)
        quiet = 0 if norm > _RAISES * largest else quiet + 1
        largest = max(largest, norm)
        # Below 1, no later square is larger; a projection onto neutral directions is its own square.
        if norm < 1.0 or quiet > _QUIET_DOUBLINGS:
            break
        if before is not None and np.abs(matrix - before).max() <= 1e-9 * norm:
            break
        before = matrix
    return largest


def _spectral_norm(matrix: np.ndarray) -> float:
    largest = float(np.abs(matrix).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    scaled = matrix / largest  # the squares of its entries fit
    return largest * math.sqrt(max(_largest_eigenvalue(scaled.T @ scaled), 0.0))


def _largest_eigenvalue(symmetric: np.ndarray) -> float:
    last = len(symmetric) - 1
    return float(scipy.linalg.eigvalsh(symmetric, subset_by_index=[last, last])[0])
