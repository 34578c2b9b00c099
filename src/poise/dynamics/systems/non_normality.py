"""How much a perturbation of a stable system can grow before it decays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float

from poise.curvature import LinearOperator, numerical_abscissa, spectral_norm

_MOST_DOUBLINGS = 60
MOST_PRODUCTS = 500
TRANSIENT_LIMIT = 400
"""Up to this many unknowns the transient growth is computed."""


@dataclass(frozen=True, slots=True)
class NonNormality:
    """Growth that eigenvalues do not show, in the Euclidean norm of the state.

    Attributes:
        sigma_max: largest singular value of the Jacobian: the most that one step of a map can amplify.
        numerical_abscissa: largest eigenvalue of its symmetric part: the fastest growth of a flow at the start.
        transient_growth: the largest amplification over all times that were computed, at least 1; ``None`` where the
            system is too large.

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
    bases = [np.linalg.matrix_power(jacobian, odd) for odd in (1, 3, 5)]
    return _non_normality(jacobian, bases)


def non_normality_of_flow(jacobian: Float[np.ndarray, "n n"]) -> NonNormality:
    """Return the transient growth of the exponential of a matrix.

    The times form a geometric sequence of ratio 1.41, from a tenth of the shortest time scale.
    """
    shortest = 0.1 / max(_spectral_norm(jacobian), 1e-300)
    bases = [scipy.linalg.expm(factor * shortest * jacobian) for factor in (1.0, 2.0**0.5)]
    return _non_normality(jacobian, bases)


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


def _non_normality(jacobian: np.ndarray, bases: list[np.ndarray]) -> NonNormality:
    growth = max(1.0, *(_largest_power(base) for base in bases))
    return NonNormality(_spectral_norm(jacobian), _largest_eigenvalue((jacobian + jacobian.T) / 2), growth)


def _largest_power(matrix: np.ndarray) -> float:
    """Return the largest spectral norm among a matrix, its square, the square of that, and so on."""
    largest = 0.0
    for _ in range(_MOST_DOUBLINGS):
        norm = _spectral_norm(matrix)
        largest = max(largest, norm)
        square = matrix @ matrix
        # Below 1, no later square is larger; a projection onto neutral directions is its own square.
        if norm < 1.0 or not norm < 1e100 or np.abs(square - matrix).max() <= 1e-9 * norm:
            break
        matrix = square
    return largest


def _spectral_norm(matrix: np.ndarray) -> float:
    return float(np.sqrt(max(_largest_eigenvalue(matrix.T @ matrix), 0.0)))


def _largest_eigenvalue(symmetric: np.ndarray) -> float:
    last = len(symmetric) - 1
    return float(scipy.linalg.eigvalsh(symmetric, subset_by_index=[last, last])[0])
