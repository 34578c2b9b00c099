"""Trace with the help of eigenvectors that are already known."""

from __future__ import annotations

import torch

from poise.curvature.eigen.eigen_result import EigenResult
from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.probes import column_dots, rademacher, standard_error
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def deflated(
    op: LinearOperator, known: EigenResult, m: int = 60, generator: torch.Generator | None = None
) -> TraceEstimate:
    """Return the sum of known eigenvalues plus Hutchinson's estimate on the complement of their vectors.

    Right also where the vectors are rough: the values of a Ritz pair are Rayleigh quotients.

    Args:
        op: symmetric.
        known: some of its eigenpairs.
        m: number of products.
        generator: source of random signs.

    Raises:
        ValueError: if ``m`` is below 1 or the vectors are not orthonormal columns of the operator's size.

    References:
        Gambhir, Stathopoulos and Orginos, "Deflation as a method of variance reduction for estimating the trace of a
        matrix inverse", SIAM J. Scientific Computing 2017, arXiv:1603.05988.
    """
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}")
    v = known.vectors
    if v.shape[0] != op.shape[0] or v.is_complex():
        raise ValueError(f"deflate must hold real vectors of {op.shape[0]} entries, got {v.dtype} {tuple(v.shape)}")
    overlap = (v.T @ v - torch.eye(v.shape[1], dtype=v.dtype, device=v.device)).abs().max()
    if overlap > 1e-3:
        raise ValueError(f"deflate must hold orthonormal vectors; their products are off by {float(overlap):.1e}")
    samples = []
    for signs in rademacher(op, m, generator):
        rest = signs - v @ (v.T @ signs)
        samples.append(column_dots(rest, op.matmat(rest)))
    rests = torch.cat(samples)
    return TraceEstimate(float(known.values.sum()) + float(rests.mean()), standard_error(rests), m)
