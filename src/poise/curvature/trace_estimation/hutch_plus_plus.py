"""Trace from a sketch of the range and random signs for the rest."""

from __future__ import annotations

import torch

from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.probes import column_dots, gaussian, rademacher, standard_error
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def hutch_plus_plus(op: LinearOperator, m: int = 60, generator: torch.Generator | None = None) -> TraceEstimate:
    r"""Return :math:`\mathrm{tr}(Q^T A Q)` plus Hutchinson's estimate on the complement of Q = orth(A S).

    S has m / 3 random columns. Exact up to rounding if the rank is at most m / 3. The standard error is that of the
    second part.

    Args:
        op: square.
        m: number of products.
        generator: source of random vectors.

    Raises:
        ValueError: if ``m`` is below 3, or a third of it exceeds the size of ``op``.

    References:
        Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal stochastic trace estimation", SOSA 2021, arXiv:2010.09649.
    """
    k = m // 3
    if not 1 <= k <= op.shape[0]:
        raise ValueError(f"m must be at least 3 and a third of it at most {op.shape[0]}, the size of op; got {m}")
    q = torch.linalg.qr(op.matmat(gaussian(op, k, generator))).Q
    known = float(column_dots(q, op.matmat(q)).sum())
    samples = []
    for signs in rademacher(op, m - 2 * k, generator):
        rest = signs - q @ (q.T @ signs)
        samples.append(column_dots(rest, op.matmat(rest)))
    rests = torch.cat(samples)
    return TraceEstimate(known + float(rests.mean()), standard_error(rests), m)
