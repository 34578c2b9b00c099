"""The largest eigenvalue of the neural tangent kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from poise.curvature.eigen.eigs import EigenResult, eigs
from poise.curvature.operators.ntk import NTK


def ntk_max(
    model: nn.Module,
    data: Any,
    objective: Any = F.mse_loss,
    params: Sequence[str] | None = None,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> EigenResult:
    r"""Return the largest eigenvalue of :math:`J J^\top` with its error bound, by Lanczos and without a matrix.

    Gradient descent on :math:`\frac12 |z|^2`, residuals summed over outputs and examples, is at its edge where it
    times the learning rate is 2; a mean over N examples divides the learning rate by N.

    Args:
        model: float32 or float64.
        data: a batch or an iterable of batches; a batch may be the inputs alone.
        objective: defines inputs and outputs where they are not obvious, see :class:`poise.curvature.Supervised`.
        params: names of parameters or of modules; by default all that require gradients.
        tol: relative tolerance.
        generator: of the start vector.

    Returns:
        One eigenvalue, its eigenvector over the outputs in the order of the data, and its error bound.

    References:
        Agarwala, Pedregosa and Pennington, ICML 2023, arXiv:2210.04860.
    """
    return eigs(NTK(model, data, objective, params), k=1, which="LA", tol=tol, generator=generator)
