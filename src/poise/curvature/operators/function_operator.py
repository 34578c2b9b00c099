"""A function of vectors as a linear operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.operators.linear_operator import LinearOperator


class FunctionOperator(LinearOperator):
    """A linear function of vectors.

    Args:
        matvec: the product with a vector.
        size: number of rows and columns, or the pair of both.
        rmatvec: the product of the transpose with a vector; a symmetric operator needs none.
        symmetric: whether the function is its own transpose.
        dtype: of the vectors.
        device: of the vectors.

    Raises:
        ValueError: if a symmetric operator is not square.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        size: int | tuple[int, int],
        *,
        rmatvec: Callable[[Tensor], Tensor] | None = None,
        symmetric: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (size, size) if isinstance(size, int) else size
        super().__init__(shape, dtype=dtype or torch.get_default_dtype(), device=device, symmetric=symmetric)
        self._product = matvec
        self._transposed = rmatvec

    def _matvec(self, v: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        return self._product(v)

    def _rmatvec(self, u: Float[Tensor, " rows"]) -> Float[Tensor, " columns"]:
        return super()._rmatvec(u) if self._transposed is None else self._transposed(u)
