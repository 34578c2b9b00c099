"""What an eigenvalue solver returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Inexact
from torch import Tensor

Which = Literal["LA", "SA", "BE", "LM"]


@dataclass(frozen=True, slots=True, eq=False)
class EigenResult:
    """Eigenvalues with bounds on their errors.

    Args:
        values: float64 (complex128 for an operator that is not symmetric), in the order that the solver documents.
        vectors: one eigenvector of norm 1 per column, in the operator's dtype (complex if the values are).
        error_bounds: an eigenvalue of the operator lies within ``error_bounds[i]`` of ``values[i]``. Rounding is
            included. For an operator that is not symmetric it is an estimate to first order in the residual.
        residuals: norms of ``A v - value v``.
        n_matvec: products that were taken.
        converged: which values are within the tolerance, as far as rounding allows.
    """

    values: Inexact[Tensor, " k"]
    vectors: Inexact[Tensor, "n k"]
    error_bounds: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    n_matvec: int
    converged: Bool[Tensor, " k"]
