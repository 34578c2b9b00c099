"""Trace from random signs."""

from __future__ import annotations

import torch

from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.probes import column_dots, rademacher, standard_error
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def hutchinson(op: LinearOperator, m: int = 60, generator: torch.Generator | None = None) -> TraceEstimate:
    r"""Return the mean of :math:`z^T A z` over m vectors z of random signs.

    Args:
        op: square.
        m: number of products.
        generator: source of the signs.

    Raises:
        ValueError: if ``m`` is below 1.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
        Communications in Statistics 1989.
    """
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}")
    samples = torch.cat([column_dots(z, op.matmat(z)) for z in rademacher(op, m, generator)])
    return TraceEstimate(float(samples.mean()), standard_error(samples), m)
