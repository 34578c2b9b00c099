"""Trace from sketches that leave out one vector each."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.probes import column_dots, gaussian, standard_error
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def xtrace(op: LinearOperator, m: int = 60, generator: torch.Generator | None = None) -> TraceEstimate:
    r"""Return the mean of estimates each of which uses one random vector to test and the others to sketch.

    With :math:`Q_i` an orthonormal basis of A times all vectors but the i-th and :math:`x_i` the part of the i-th
    vector outside of it, :math:`t_i = \mathrm{tr}(Q_i^T A Q_i) + (n - p + 1)\, x_i^T A x_i / |x_i|^2` for p = m / 2
    vectors. Every vector serves both purposes, so that it takes fewer than Hutch++. The standard error treats the
    :math:`t_i` as independent.

    Args:
        op: square.
        m: number of products, of which an odd one is not taken.
        generator: source of random vectors.

    Raises:
        ValueError: if ``m`` is below 4 or at least twice the size of ``op``.

    References:
        Epperly, Tropp and Webber, "XTrace: Making the most of every sample in stochastic trace estimation", SIAM J.
        Matrix Analysis 2024, arXiv:2301.07825.
    """
    n, p = op.shape[0], m // 2
    if not 2 <= p < n:
        raise ValueError(f"m must be at least 4 and less than twice the size of op, {n}; got {m}")
    omega = gaussian(op, p, generator)
    y = op.matmat(omega)
    q, r = torch.linalg.qr(y)
    outside, rank = _left_out(r)
    if rank < p:  # the sketch holds the whole range
        q = q @ outside
        return TraceEstimate(float(column_dots(q, op.matmat(q)).sum()), 0.0, p + rank)
    z = op.matmat(q)
    h, w = (q.T @ z), (q.T @ omega)
    shift = outside * (outside * w).sum(0) - w
    x, ax = omega + q @ shift, y + z @ shift
    sketched = h.diagonal().sum(dtype=torch.float64) - column_dots(outside, h @ outside)
    tested = (n - p + 1) * column_dots(x, ax) / column_dots(x, x)
    samples = sketched + tested
    return TraceEstimate(float(samples.mean()), standard_error(samples), 2 * p)


def _left_out(r: Float[Tensor, "p p"]) -> tuple[Float[Tensor, "p q"], int]:
    """Return the directions, in coordinates of Q, that are lost with each vector; or a basis of the range of r."""
    u, s, vh = torch.linalg.svd(r.double())
    rank = int((s > len(r) * 10 * torch.finfo(r.dtype).eps * s[0]).sum())
    if rank < len(r):
        return u[:, :rank].to(r.dtype), rank
    inverse = u @ (vh / s[:, None])  # transposed inverse of r
    return (inverse / torch.linalg.vector_norm(inverse, dim=0)).to(r.dtype), rank
