"""Vectors orthogonal to those that a solver already has."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.operators.linear_operator import LinearOperator

ASYMMETRY = 1e-4
"""Largest difference of u.Av and v.Au, relative to the operator's size, that passes for rounding."""


_PIECE = 2**16


class AsymmetryError(ValueError):
    """A solver for symmetric operators met one that is not."""

    def __init__(self, difference: float) -> None:
        super().__init__(
            f"op must be symmetric, but u.Av and v.Au differ by {difference:.1e} of the operator's size; "
            'use method="arnoldi"'
        )


def orthogonalize(
    w: Float[Tensor, " n"], basis: Float[Tensor, "j n"]
) -> tuple[Float[Tensor, " n"], Float[np.ndarray, " j"], float]:
    """Remove from ``w`` what lies in the span of ``basis``, by classical Gram-Schmidt twice.

    Args:
        w: any vector.
        basis: orthonormal rows.

    Returns:
        What remains of ``w``, the coefficients that were removed, and the norm of what remains (both in float64).

    Raises:
        ValueError: if ``w`` is not finite.

    References:
        Giraud, Langou and Rozloznik, "The loss of orthogonality in the Gram-Schmidt orthogonalization process",
        Computers and Mathematics with Applications 2005 (twice is enough).
    """
    columns = basis.T
    first = _coefficients(basis, w)
    w = torch.addmv(w, columns, first.to(w.dtype), alpha=-1)
    second = _coefficients(basis, w)
    w.addmv_(columns, second.to(w.dtype), alpha=-1)
    # One transfer from the device for all numbers of the step.
    numbers = torch.cat([first, second, torch.linalg.vector_norm(w, dtype=torch.float64, keepdim=True)])
    found = numbers.cpu().numpy()
    norm, j = float(found[-1]), len(first)
    removed = found[:j] + found[j:-1]
    if not math.isfinite(norm) or not np.isfinite(removed).all():
        raise ValueError("a product with op is not finite")
    return w, removed, norm


def _coefficients(basis: Float[Tensor, "j n"], w: Float[Tensor, " n"]) -> Float[Tensor, " j"]:
    """Scalar products, in float64 of what float32 sums over short pieces: over ten million terms it loses 1e-4."""
    if len(w) <= _PIECE:
        return basis @ w
    pieces = [row @ part for row, part in zip(basis.split(_PIECE, dim=1), w.split(_PIECE), strict=True)]
    return torch.stack(pieces).sum(0, dtype=torch.float64)


def random_unit_vector(n: int, op: LinearOperator, generator: torch.Generator | None) -> Float[Tensor, " n"]:
    """Return a vector of uniform direction in the operator's dtype, on its device."""
    device = op.device if generator is None else generator.device
    v = torch.randn(n, dtype=op.dtype, device=device, generator=generator).to(op.device)
    return v / torch.linalg.vector_norm(v)
