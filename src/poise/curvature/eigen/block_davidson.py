"""Extreme eigenvalues of a symmetric operator from several start vectors at once."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.eigen.eigen_result import EigenResult, Which
from poise.curvature.eigen.limits import basis_limit, product_limit
from poise.curvature.eigen.orthogonal import ASYMMETRY, AsymmetryError, orthogonalize, random_unit_vector
from poise.curvature.eigen.ritz import rounding, select, separated_bounds
from poise.curvature.operators.linear_operator import LinearOperator


def block_davidson(
    op: LinearOperator,
    k: int = 1,
    which: Which = "LA",
    tol: float = 1e-3,
    v0: Float[Tensor, "n p"] | None = None,
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
    edge: float | None = None,
) -> EigenResult:
    """Return k extreme eigenvalues of a symmetric operator, outermost first.

    Rayleigh-Ritz on a block of vectors, which then grows by the residual of the pair that is furthest from converged,
    one product at a time (Davidson's method without a preconditioner). Copies of a multiple eigenvalue are found up to
    the number of columns of the block. From the eigenvectors of a nearby operator, as when a sharpness is followed over
    training steps, it takes the fewest products of all solvers here.

    Args:
        op: symmetric.
        k: number of eigenvalues.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest magnitude, ``"BE"`` from both ends.
        tol: relative tolerance of the values.
        v0: start vectors; k + 2 random ones by default.
        generator: source of random vectors.
        max_matvecs: most products to take; ``converged`` then marks what is reliable. 20 n by default.
        basis_size: most basis vectors in memory; ``max(3 k + 20, 40)`` by default, or n if that is at most 4 times as
            many.
        edge: a number beyond which no eigenvalue lies but the k wanted ones, if that is known (from an earlier
            measurement, for ``which`` "LA" or "SA"). It turns residuals into far smaller error bounds.

    Raises:
        ValueError: if the operator returns values that are not finite, or ``edge`` comes with another ``which``.

    References:
        Davidson, "The iterative calculation of a few of the lowest eigenvalues", J. Computational Physics 1975.
    """
    if edge is not None and which not in ("LA", "SA"):
        raise ValueError(f'edge needs which="LA" or "SA", got which={which!r}')
    n = op.shape[0]
    most = product_limit(max_matvecs, n)
    columns = min(k + 2 if v0 is None else v0.shape[1], most)
    space = _Space(op, min(n, max(basis_limit(basis_size, max(3 * k + 20, 40), n), columns + 1)), generator)
    start = _start_block(op, columns, generator) if v0 is None else v0[:, :columns]
    space.grow(start.T.to(op.dtype))
    while True:
        pairs = space.ritz(k, which)
        bounds = _bounds(pairs.values, pairs.residuals, edge)
        error = rounding(space.theta, op.dtype)
        excess = bounds / np.maximum(tol * np.abs(pairs.values), max(error, np.finfo(float).tiny))
        missing = k - len(excess)
        if ((excess <= 1).all() and not missing) or space.j == n or space.n_matvec >= most:
            return pairs.result(bounds, error, excess <= 1, space.n_matvec)
        if space.j == space.size:
            space.restart(min(max(k + 5, columns), space.size - 1), which)
        space.grow(space.random() if missing else pairs.residual_vectors[int(excess.argmax())][None])


def _start_block(op: LinearOperator, columns: int, generator: torch.Generator | None) -> Tensor:
    columns = min(columns, op.shape[0])
    return torch.stack([random_unit_vector(op.shape[0], op, generator) for _ in range(columns)], dim=1)


def _bounds(values: np.ndarray, residuals: np.ndarray, edge: float | None) -> np.ndarray:
    return residuals if edge is None else separated_bounds(values, residuals, edge)


class _Pairs:
    """The wanted Ritz pairs, as rows, with their residual vectors."""

    def __init__(self, values: np.ndarray, vectors: Tensor, images: Tensor) -> None:
        self.values, self.vectors = values, vectors
        scale = torch.as_tensor(values, dtype=vectors.dtype, device=vectors.device)
        self.residual_vectors = images - scale[:, None] * vectors
        self.residuals = torch.linalg.vector_norm(self.residual_vectors, dim=1).double().cpu().numpy()

    def result(self, bounds: np.ndarray, error: float, converged: np.ndarray, n_matvec: int) -> EigenResult:
        return EigenResult(
            torch.from_numpy(self.values.copy()),
            self.vectors.T.contiguous(),
            torch.from_numpy(bounds + error),
            torch.from_numpy(self.residuals),
            n_matvec,
            torch.from_numpy(converged),
        )


class _Space:
    """An orthonormal basis (rows), its image under the operator, and the projected matrix."""

    def __init__(self, op: LinearOperator, size: int, generator: torch.Generator | None) -> None:
        self.op, self.size, self.generator = op, size, generator
        self.basis = torch.empty(size, op.shape[0], dtype=op.dtype, device=op.device)
        self.image = torch.empty_like(self.basis)
        self.projected = np.zeros((size, size))
        self.j = 0
        self.n_matvec = 0

    def random(self) -> Tensor:
        return random_unit_vector(self.op.shape[0], self.op, self.generator)[None]

    def grow(self, rows: Float[Tensor, "p n"]) -> None:
        """Take what is new in ``rows`` into the basis; in place of a row without news comes a random vector."""
        first = self.j
        for row in rows[: self.size - first]:
            v, norm = self._orthonormal(row)
            while norm < 1e-3:  # lost in what the basis has: rounding would decide its direction
                v, norm = self._orthonormal(self.random()[0])
            self.basis[self.j] = v
            self.j += 1
        new = slice(first, self.j)
        self.image[new] = self.op.matmat(self.basis[new].T).T
        self.n_matvec += self.j - first
        block = (self.image[new] @ self.basis[: self.j].T).double().cpu().numpy()
        mirror = (self.basis[new] @ self.image[: self.j].T).double().cpu().numpy()
        if not np.isfinite(block).all():
            raise ValueError("a product with op is not finite")
        difference = np.abs(block - mirror).max() / max(np.abs(block).max(), np.abs(self.projected).max(), 1e-300)
        if difference > ASYMMETRY:
            raise AsymmetryError(float(difference))
        self.projected[new, : self.j] = (block + mirror) / 2
        self.projected[: self.j, new] = self.projected[new, : self.j].T

    def _orthonormal(self, row: Tensor) -> tuple[Tensor, float]:
        row = row / torch.linalg.vector_norm(row).clamp_min(torch.finfo(row.dtype).tiny)
        v, _, norm = orthogonalize(row, self.basis[: self.j])
        return v / max(norm, 1e-30), norm

    def ritz(self, k: int, which: Which) -> _Pairs:
        self.theta, self.s = np.linalg.eigh(self.projected[: self.j, : self.j])
        chosen = select(self.theta, min(k, self.j), which)
        rows = self._rows(chosen)
        return _Pairs(self.theta[chosen], rows @ self.basis[: self.j], rows @ self.image[: self.j])

    def restart(self, kept: int, which: Which) -> None:
        chosen = select(self.theta, kept, which)
        rows = self._rows(chosen)
        self.basis[:kept] = rows @ self.basis[: self.j]
        self.image[:kept] = rows @ self.image[: self.j]
        self.projected[:] = 0.0
        self.projected[range(kept), range(kept)] = self.theta[chosen]
        self.j = kept

    def _rows(self, chosen: np.ndarray) -> Tensor:
        return torch.as_tensor(self.s[:, chosen].T.copy(), dtype=self.op.dtype, device=self.op.device)
