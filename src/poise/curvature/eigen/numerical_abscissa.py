"""The fastest growth that a linear flow shows at its start."""

from __future__ import annotations

import torch

from poise.curvature.eigen.eigen_result import EigenResult
from poise.curvature.eigen.eigs import eigs
from poise.curvature.eigen.limits import pair_limit
from poise.curvature.operators.function_operator import FunctionOperator
from poise.curvature.operators.linear_operator import LinearOperator


def numerical_abscissa(
    op: LinearOperator,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
) -> EigenResult:
    """Return the largest eigenvalue of the symmetric part, ``(A + A^T) / 2``, with its vector.

    A flow ``x' = A x`` grows at the start if it is positive, also where all eigenvalues have negative real parts.
    ``n_matvec`` counts products with the operator and with its transpose.

    Args:
        op: square, has a product with its transpose.
        tol: relative tolerance.
        generator: source of the random start.
        max_matvecs: most products to take, at least 2.

    Raises:
        NotImplementedError: if ``op`` has no product with its transpose.
        ValueError: if ``op`` is not square or ``max_matvecs`` is below 2.

    References:
        Trefethen and Embree, "Spectra and Pseudospectra", Princeton University Press 2005, chapter 14.
    """
    if op.shape[0] != op.shape[1]:
        raise ValueError(f"op must be square, got shape {op.shape}")
    part = FunctionOperator(
        lambda v: (op.matvec(v) + op.rmatvec(v)) / 2, op.shape[0], symmetric=True, dtype=op.dtype, device=op.device
    )
    most = pair_limit(max_matvecs)
    found = eigs(part, 1, "LA", tol, generator=generator, max_matvecs=most)
    return EigenResult(
        found.values, found.vectors, found.error_bounds, found.residuals, 2 * found.n_matvec, found.converged
    )
