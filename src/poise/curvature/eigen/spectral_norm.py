"""The most that an operator can stretch a vector."""

from __future__ import annotations

import torch

from poise.curvature.eigen.eigen_result import EigenResult
from poise.curvature.eigen.eigs import eigs
from poise.curvature.eigen.limits import pair_limit
from poise.curvature.operators.function_operator import FunctionOperator
from poise.curvature.operators.linear_operator import LinearOperator


def spectral_norm(
    op: LinearOperator,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
) -> EigenResult:
    """Return the largest singular value with its right singular vector.

    For the Jacobian of a map this is the largest growth of a perturbation in one step, which may exceed 1 where all
    eigenvalues are inside the unit circle. Lanczos on the product of the transpose and the operator; ``n_matvec``
    counts both.

    Args:
        op: any operator that has a product with its transpose.
        tol: relative tolerance.
        generator: source of the random start.
        max_matvecs: most products to take, at least 2.

    Raises:
        NotImplementedError: if ``op`` has no product with its transpose.
        ValueError: if ``max_matvecs`` is below 2.

    References:
        Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix", SIAM J. Numerical Analysis
        1965.
    """
    squared = FunctionOperator(
        lambda v: op.rmatvec(op.matvec(v)), op.shape[1], symmetric=True, dtype=op.dtype, device=op.device
    )
    most = pair_limit(max_matvecs)
    found = eigs(squared, 1, "LA", tol, generator=generator, max_matvecs=most)
    value = found.values.clamp_min(0.0).sqrt()
    # |s - sigma| (s + sigma) = |s^2 - sigma^2|, and sigma is not negative.
    narrow = torch.where(value > 0, found.error_bounds / value, torch.inf)
    bounds = torch.minimum(narrow, found.error_bounds.sqrt())
    residuals = torch.where(value > 0, found.residuals / value, found.residuals)
    return EigenResult(value, found.vectors, bounds, residuals, 2 * found.n_matvec, found.converged)
