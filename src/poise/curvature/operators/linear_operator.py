"""A matrix that is only known by its products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class LinearOperator(ABC):
    """A linear map of flat vectors.

    A child gives ``_matvec``, and overrides ``_matmat`` where several products at once are cheaper than one by one and
    ``_rmatvec`` where it is not symmetric.

    Args:
        shape: number of rows and of columns.
        dtype: of the vectors that it takes and returns.
        device: of the vectors that it takes and returns.
        symmetric: whether it equals its transpose.

    Attributes:
        shape: number of rows and of columns.
        dtype: of the vectors.
        device: of the vectors.
        symmetric: whether it equals its transpose.
        n_matvec: products computed so far; a product with k columns counts k.

    Raises:
        ValueError: if it is declared symmetric and is not square.
    """

    def __init__(
        self, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device | str, symmetric: bool
    ) -> None:
        if symmetric and shape[0] != shape[1]:
            raise ValueError(f"a symmetric operator is square; got shape {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.device = torch.device(device)
        self.symmetric = symmetric
        self.n_matvec = 0

    @abstractmethod
    def _matvec(self, v: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]: ...

    def _matmat(self, v: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        return torch.stack([self._matvec(column) for column in v.T.contiguous()], dim=1)

    def _rmatvec(self, u: Float[Tensor, " rows"]) -> Float[Tensor, " columns"]:
        if not self.symmetric:
            raise NotImplementedError(f"{type(self).__name__} has no product with its transpose")
        return self._matvec(u)

    def matvec(self, v: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        """Return the product with a vector.

        Raises:
            ValueError: if the shape, dtype or device of ``v`` is not the operator's.
        """
        self._check("v", v, (self.shape[1],))
        self.n_matvec += 1
        return self._matvec(v)

    def matmat(self, v: Float[Tensor, "columns k"]) -> Float[Tensor, "rows k"]:
        """Return the products with the k columns of ``v``.

        Raises:
            ValueError: if the shape, dtype or device of ``v`` is not the operator's.
        """
        k = v.shape[1] if v.ndim == 2 else 1
        self._check("v", v, (self.shape[1], k))
        if k == 0:
            return v.new_zeros(self.shape[0], 0)
        self.n_matvec += k
        return self._matmat(v)

    def rmatvec(self, u: Float[Tensor, " rows"]) -> Float[Tensor, " columns"]:
        """Return the product of the transpose with a vector.

        Raises:
            ValueError: if the shape, dtype or device of ``u`` is not the operator's.
            NotImplementedError: if the operator has no product with its transpose.
        """
        self._check("u", u, (self.shape[0],))
        self.n_matvec += 1
        return self._rmatvec(u)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Return the matrix itself; takes one product per column, so it is for small operators."""
        return self.matmat(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))

    def to_scipy(self) -> ScipyOperator:
        """Return the operator for SciPy's solvers (vectors are copied through the memory of the CPU)."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def through(product):  # type: ignore[no-untyped-def]
            def of_array(x):  # type: ignore[no-untyped-def]
                return product(torch.as_tensor(x, dtype=self.dtype, device=self.device)).cpu().numpy()

            return of_array

        return ScipyOperator(
            shape=self.shape,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
            matvec=lambda x: through(self.matvec)(x.reshape(-1)),
            rmatvec=lambda x: through(self.rmatvec)(x.reshape(-1)),
            matmat=through(self.matmat),
        )

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows} x {columns}, {self.dtype}, {self.device})"

    def _check(self, name: str, v: Tensor, shape: tuple[int, ...]) -> None:
        if v.shape != shape or v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"{name} must have shape {shape}, dtype {self.dtype} and device {self.device}; "
                f"got shape {tuple(v.shape)}, dtype {v.dtype} and device {v.device}"
            )
