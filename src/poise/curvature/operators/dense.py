"""A matrix in memory as a linear operator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.operators.linear_operator import LinearOperator


class DenseOperator(LinearOperator):
    """A matrix in memory; it is symmetric if it equals its transpose to rounding.

    Args:
        matrix: real floating-point matrix.

    Raises:
        ValueError: if ``matrix`` is not a real floating-point matrix with finite entries.
    """

    def __init__(self, matrix: Float[Tensor, "rows columns"]) -> None:
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise ValueError(f"matrix must be a real 2-d tensor, got {matrix.dtype} of shape {tuple(matrix.shape)}")
        if not matrix.isfinite().all():
            raise ValueError("matrix must be finite; it has NaN or infinite entries")
        super().__init__(
            (matrix.shape[0], matrix.shape[1]),
            dtype=matrix.dtype,
            device=matrix.device,
            symmetric=_is_symmetric(matrix),
        )
        self.matrix = matrix.detach()

    def _matvec(self, v: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        return self.matrix @ v

    def _matmat(self, v: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        return self.matrix @ v

    def _rmatvec(self, u: Float[Tensor, " rows"]) -> Float[Tensor, " columns"]:
        return self.matrix.T @ u

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Return a copy of the matrix."""
        return self.matrix.clone()


def _is_symmetric(matrix: Tensor) -> bool:
    if matrix.shape[0] != matrix.shape[1]:
        return False
    rounding = 100 * torch.finfo(matrix.dtype).eps * matrix.abs().amax() if matrix.numel() else 0.0
    return bool(((matrix - matrix.T).abs() <= rounding).all())
