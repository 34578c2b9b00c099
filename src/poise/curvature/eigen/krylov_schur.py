"""Eigenvalues of an operator that need not be symmetric, by the Arnoldi process with Krylov-Schur restarts."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from poise.curvature.eigen.eigen_result import EigenResult, Which
from poise.curvature.eigen.limits import basis_limit, product_limit
from poise.curvature.eigen.orthogonal import orthogonalize, random_unit_vector
from poise.curvature.eigen.ritz import rounding
from poise.curvature.operators.linear_operator import LinearOperator

NEGLIGIBLE = 10.0
"""A remainder below this many eps of the operator's size is rounding: the basis spans an invariant subspace."""


def order_complex(theta: Complex[np.ndarray, " m"], which: Which) -> Int[np.ndarray, " m"]:
    """Return the places of all values, most wanted first; of a conjugate pair, the one above the real axis first.

    Args:
        theta: any values.
        which: ``"LM"`` largest magnitude, ``"LA"`` largest real part, ``"SA"`` smallest real part.

    Raises:
        ValueError: for ``"BE"``, which has no meaning in the plane.
    """
    if which == "BE":
        raise ValueError('which="BE" needs a symmetric operator; give "LM", "LA" or "SA"')
    key = {"LM": -np.abs(theta), "LA": -theta.real, "SA": theta.real}[which]
    # Values of a pair agree to rounding only.
    coarse = np.round(key / max(float(np.abs(theta).max(initial=0.0)), np.finfo(float).tiny), 12)
    return np.lexsort((-theta.imag, coarse))


def krylov_schur(
    op: LinearOperator,
    k: int = 1,
    which: Which = "LM",
    tol: float = 1e-3,
    v0: Float[Tensor, " n"] | None = None,
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
) -> EigenResult:
    r"""Return k eigenvalues of an operator that need not be symmetric.

    Arnoldi: :math:`A Q_j = Q_j H_j + q_{j+1} b^T`, orthogonalised twice. Eigenpairs (theta, y) of H have residuals
    :math:`|b^T y|`. When the basis is full, the Schur vectors of the wanted values begin the next one. Error bounds
    are the residual times the condition number of the eigenvalue in H: right to first order in the residual, and no
    bound of a defective eigenvalue.

    Args:
        op: square.
        k: number of eigenvalues. Conjugates count as two.
        which: ``"LM"`` largest magnitude, ``"LA"`` largest real part, ``"SA"`` smallest real part.
        tol: residuals are to be below ``tol`` times the value.
        v0: start vector; random by default.
        generator: source of random vectors.
        max_matvecs: most products to take; ``converged`` then marks what is reliable. 20 n by default.
        basis_size: most basis vectors in memory; ``max(3 k + 20, 40)`` by default, or n if that is at most 4 times as
            many.

    Raises:
        ValueError: if a product is not finite, ``which`` is ``"BE"``, or ``basis_size`` is below ``k + 6``.

    References:
        Stewart, "A Krylov-Schur algorithm for large eigenproblems", SIAM J. Matrix Analysis 2001.
    """
    n = op.shape[0]
    size = basis_limit(basis_size, max(3 * k + 20, 40), n)
    if size < min(n, k + 6):
        raise ValueError(f"basis_size must be at least k + 6 = {k + 6}, got {basis_size}")
    run = _Run(op, k, which, tol, size, generator)
    run.start(v0)
    most = product_limit(max_matvecs, n)
    while not run.step() and run.n_matvec < most:
        if run.j == size:
            run.restart()
    return run.result()


class _Run:
    """State of one run: basis rows q_1 .. q_{j+1}, Rayleigh quotient H, coupling b of the last vector."""

    def __init__(
        self, op: LinearOperator, k: int, which: Which, tol: float, size: int, generator: torch.Generator | None
    ) -> None:
        self.op, self.k, self.which, self.tol, self.size, self.generator = op, k, which, tol, size, generator
        self.n = op.shape[0]
        self.basis = torch.empty(size + 1, self.n, dtype=op.dtype, device=op.device)
        self.h = np.zeros((size + 1, size))  # row j is the coupling to the vector outside
        self.j = 0
        self.n_matvec = 0

    def start(self, v0: Tensor | None) -> None:
        v = random_unit_vector(self.n, self.op, self.generator) if v0 is None else v0
        self.basis[0] = v / torch.linalg.vector_norm(v)

    def step(self) -> bool:
        """Take one product; return whether the run is over."""
        j = self.j
        w, h, beta = orthogonalize(self.op.matvec(self.basis[j]), self.basis[: j + 1])
        self.n_matvec += 1
        self.h[: j + 1, j] = h
        self.j = j + 1
        size = max(float(np.abs(self.h[: self.j, : self.j]).max()), beta)
        if beta <= NEGLIGIBLE * torch.finfo(self.op.dtype).eps * size:
            return self._breakdown()
        self.h[j + 1, j] = beta
        self.basis[j + 1] = w / beta
        self._ritz()
        return self._converged()

    def _breakdown(self) -> bool:
        self.h[self.j, : self.j] = 0.0
        self._ritz()
        if self.j >= self.k:
            return True
        v, _, norm = orthogonalize(random_unit_vector(self.n, self.op, self.generator), self.basis[: self.j])
        self.basis[self.j] = v / norm
        return False

    def _ritz(self) -> None:
        j = self.j
        theta, left, right = scipy.linalg.eig(self.h[:j, :j], left=True, right=True)  # type: ignore[misc]
        order = order_complex(theta, self.which)[: self.k]
        self.theta, self.y = theta[order], right[:, order]
        overlap = np.abs((left[:, order].conj() * self.y).sum(0))
        self.condition = 1.0 / np.maximum(overlap, np.finfo(float).tiny)
        self.residuals = np.abs(self.h[j, :j] @ self.y)
        self.rounding = rounding(theta, self.op.dtype)

    def _converged(self) -> bool:
        return self.j > min(self.k, self.n - 1) and bool(self._are_converged().all())

    def _are_converged(self) -> np.ndarray:
        return self.residuals <= np.maximum(self.tol * np.abs(self.theta), self.rounding)

    def restart(self) -> None:
        """Keep the Schur vectors of the wanted values and a few more."""
        j = self.j
        everything = np.linalg.eigvals(self.h[:j, :j])
        order = order_complex(everything, self.which)
        kept = min(self.k + 5, j - 2)
        if everything[order[kept - 1]].imag > 0:
            kept += 1  # both of a pair
        chosen = everything[order[:kept]]

        def is_kept(re: float, im: float) -> bool:
            return bool(np.abs(chosen - complex(re, im)).min() <= 1e-8 * np.abs(everything).max())

        schur, z, m = scipy.linalg.schur(self.h[:j, :j], output="real", sort=is_kept)
        rows = torch.as_tensor(z[:, :m].T.copy(), dtype=self.op.dtype, device=self.op.device)
        last = self.basis[j].clone()
        coupling = self.h[j, :j] @ z[:, :m]
        self.basis[:m] = rows @ self.basis[:j]
        self.basis[m] = last
        self.h[:] = 0.0
        self.h[:m, :m] = schur[:m, :m]
        self.h[m, :m] = coupling
        self.j = m

    def result(self) -> EigenResult:
        y = torch.as_tensor(self.y, device=self.op.device).to(self.op.dtype.to_complex())
        vectors = self.basis[: self.j].T.to(y.dtype) @ y
        return EigenResult(
            torch.from_numpy(self.theta.astype(complex)),
            vectors,
            torch.from_numpy(self.condition * (self.residuals + self.rounding)),
            torch.from_numpy(self.residuals),
            self.n_matvec,
            torch.from_numpy(self._are_converged()),
        )
