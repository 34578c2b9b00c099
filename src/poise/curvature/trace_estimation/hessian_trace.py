"""The trace of the Hessian of a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from poise.curvature.operators.hessian.hessian import Hessian
from poise.curvature.trace_estimation.trace import trace
from poise.curvature.trace_estimation.trace_estimate import TraceEstimate


def hessian_trace(
    model: nn.Module, loss_fn: Any, data: Any, probes: int = 60, generator: torch.Generator | None = None
) -> TraceEstimate:
    """Return an estimate of the trace of the Hessian of the mean loss.

    Args:
        model: float32 or float64.
        loss_fn: see :class:`Hessian`.
        data: a batch or an iterable of batches.
        probes: number of Hessian products.
        generator: of the probes.

    Returns:
        The trace with its standard error.

    Raises:
        ValueError: if ``probes`` is below 1; else as :class:`Hessian`.
    """
    return trace(Hessian(model, loss_fn, data), m=probes, generator=generator)
