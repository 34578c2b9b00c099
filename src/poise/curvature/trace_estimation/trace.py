"""Trace of an operator: which estimator."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from poise.curvature.eigen.eigen_result import EigenResult
from poise.curvature.operators.linear_operator import LinearOperator
from poise.curvature.trace_estimation.deflated import deflated
from poise.curvature.trace_estimation.hutch_plus_plus import hutch_plus_plus
from poise.curvature.trace_estimation.hutchinson import hutchinson
from poise.curvature.trace_estimation.probes import column_dots
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate
from poise.curvature.trace_estimation.xtrace import xtrace

TraceMethod = Literal["auto", "hutchinson", "hutch++", "xtrace", "deflated"]

SKETCH_BYTES = 2**30
"""Above this, "auto" keeps no sketch."""


def trace(
    op: LinearOperator,
    m: int = 60,
    method: TraceMethod = "auto",
    deflate: EigenResult | None = None,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """Return the trace with its standard error, from at most m products.

    Args:
        op: square.
        m: number of products; the trace is exact where it reaches the size of ``op``.
        method: ``"hutchinson"`` keeps a few vectors in memory, ``"hutch++"`` and ``"xtrace"`` about m or 1.5 m and are
            far better where few eigenvalues dominate; ``"deflated"`` uses ``deflate``. ``"auto"`` is ``"deflated"``
            where that is given, ``"xtrace"`` where the memory is below 1 GiB, else ``"hutchinson"``.
        deflate: some eigenpairs of ``op``.
        generator: source of random vectors.

    Raises:
        ValueError: if ``op`` is not square, ``method`` is unknown or lacks ``deflate``, or ``m`` is too small for it.
    """
    if op.shape[0] != op.shape[1]:
        raise ValueError(f"op must be square, got shape {op.shape}")
    if method not in get_args(TraceMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(TraceMethod))}; got {method!r}")
    if (method == "deflated" and deflate is None) or (method not in ("auto", "deflated") and deflate is not None):
        raise ValueError(f'deflate belongs to method="deflated" or "auto", got method={method!r}, deflate={deflate!r}')
    if m >= op.shape[0]:
        return _exact(op)
    if deflate is not None:
        return deflated(op, deflate, m, generator)
    chosen = _auto(op, m) if method == "auto" else method
    estimator = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}[chosen]
    return estimator(op, m, generator)


def _auto(op: LinearOperator, m: int) -> str:
    sketch = 2 * m * op.shape[0] * torch.finfo(op.dtype).bits // 8
    return "xtrace" if m >= 4 and sketch <= SKETCH_BYTES else "hutchinson"


def _exact(op: LinearOperator) -> TraceEstimate:
    n = op.shape[0]
    identity = torch.eye(n, dtype=op.dtype, device=op.device)
    return TraceEstimate(float(column_dots(identity, op.matmat(identity)).sum()), 0.0, n)
