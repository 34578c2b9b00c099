"""Extreme eigenvalues of a symmetric operator by the Lanczos process with thick restarts."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.eigen.eigen_result import EigenResult, Which
from poise.curvature.eigen.false_convergence import log_growth, needed_growth, suspects
from poise.curvature.eigen.limits import basis_limit, product_limit
from poise.curvature.eigen.orthogonal import ASYMMETRY, AsymmetryError, orthogonalize, random_unit_vector
from poise.curvature.eigen.ritz import rounding, select
from poise.curvature.operators.linear_operator import LinearOperator

LEAST_RISK, MOST_RISK = 1e-3, 0.2

WARM_NOISE = 0.01
"""Share of a random vector in a warm start, without which an eigenvector that is new would stay unseen."""


def lanczos(
    op: LinearOperator,
    k: int = 1,
    which: Which = "LA",
    tol: float = 1e-3,
    v0: Float[Tensor, " n"] | None = None,
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
    basis_size: int | None = None,
) -> EigenResult:
    r"""Return k extreme eigenvalues of a symmetric operator, outermost first.

    Each step takes one product, :math:`\beta_j q_{j+1} = A q_j - \sum_{i \le j} h_i q_i`, orthogonalised twice against
    all vectors so far. Eigenpairs of the projected matrix (in float64) are the Ritz pairs. When the basis is full, the
    best Ritz vectors and the last vector begin the next one.

    The run ends when every residual, which bounds the error, is below ``tol`` times its value and, for a cold start,
    the probability that an eigenvalue was overlooked is below :func:`accepted_risk` (0.1 % at the default tolerance).
    (The usual bound residual^2 / gap is not taken: the gap between Ritz values does not show a cluster that is narrower
    than the residual.) ``error_bounds`` are never below ``tol`` times the value, within which no further search is
    made. One vector finds one copy of a multiple eigenvalue; :func:`poise.curvature.block_davidson` finds them all.

    Args:
        op: symmetric.
        k: number of eigenvalues.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest magnitude, ``"BE"`` from both ends.
        tol: relative tolerance of the values.
        v0: a warm start: an approximate eigenvector, to which 1 % of noise is added. Random by default.
        generator: source of the random start.
        max_matvecs: most products to take; ``converged`` then marks what is reliable. 20 n by default.
        basis_size: most basis vectors in memory; ``max(2 k + 20, 40)`` by default, or n if that is at most 4 times as
            many.

    Raises:
        ValueError: if the operator turns out not to be symmetric, returns values that are not finite, or
            ``basis_size`` is below ``k + 6``.

    References:
        Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix Analysis
        2000.
    """
    n = op.shape[0]
    size = basis_limit(basis_size, max(2 * k + 20, 40), n)
    if size < min(n, k + 6):
        raise ValueError(f"basis_size must be at least k + 6 = {k + 6}, got {basis_size}")
    run = _Run(op, k, which, tol, size, generator)
    run.start(v0)
    most = product_limit(max_matvecs, n)
    while not run.step() and run.n_matvec < most:
        if run.j == size:
            run.restart()
    return run.result()


FAR = 100.0
"""With residuals this many times too large, the next step is not checked."""


def accepted_risk(tol: float) -> float:
    """Return the accepted probability that a cold start overlooks an eigenvalue, more for a rough answer.

    See :mod:`poise.curvature.false_convergence`.

    Args:
        tol: relative tolerance of the values.
    """
    return min(max(300 * tol**2, LEAST_RISK), MOST_RISK)


class _Run:
    """State of one run: basis rows q_1 .. q_{j+1}, projected matrix, Ritz pairs."""

    def __init__(
        self, op: LinearOperator, k: int, which: Which, tol: float, size: int, generator: torch.Generator | None
    ) -> None:
        self.op, self.k, self.which, self.tol, self.size, self.generator = op, k, which, tol, size, generator
        self.n = op.shape[0]
        self.basis = torch.empty(size + 1, self.n, dtype=op.dtype, device=op.device)
        self.projected = np.zeros((size, size))
        self.scale = 0.0  # largest entry that the projected matrix has had
        self.j = 0
        self.n_matvec = 0
        self.beta = 0.0
        self.betas: list[float] = []
        self.discarded = np.zeros(0)
        self.needed = 0.0
        self.countdown = 0

    def start(self, v0: Tensor | None) -> None:
        v = random_unit_vector(self.n, self.op, self.generator)
        if v0 is None:
            self.needed = needed_growth(self.n, accepted_risk(self.tol))
        else:
            v = v0 / torch.linalg.vector_norm(v0) + WARM_NOISE * v
            v /= torch.linalg.vector_norm(v)
        self.basis[0] = v

    def step(self) -> bool:
        """Take one product; return whether the run is over."""
        j = self.j
        w = self.op.matvec(self.basis[j])
        self.n_matvec += 1
        w, h, self.beta = orthogonalize(w, self.basis[: j + 1])
        self._check_symmetry(h)
        self.projected[: j + 1, j] = self.projected[j, : j + 1] = h
        self.j = j + 1
        if self.beta <= self._negligible():
            return self._breakdown()
        self.betas.append(self.beta)
        torch.div(w, self.beta, out=self.basis[j + 1])
        if self.j < self.size:
            self.projected[j, j + 1] = self.projected[j + 1, j] = self.beta
        return self._converged()

    def _negligible(self) -> float:
        return 10 * torch.finfo(self.op.dtype).eps * self.scale

    def _check_symmetry(self, h: np.ndarray) -> None:
        j = self.j
        self.scale = max(self.scale, float(np.abs(h).max()))
        wrong = float(np.abs(h[:j] - self.projected[:j, j]).max(initial=0.0))
        if wrong > ASYMMETRY * max(self.scale, self.beta):
            raise AsymmetryError(wrong / max(self.scale, self.beta))

    def _ritz(self) -> None:
        j = self.j
        self.theta, self.s = np.linalg.eigh(self.projected[:j, :j])
        self.residuals = self.beta * np.abs(self.s[-1])
        self.wanted = select(self.theta, min(self.k, j), self.which)

    def _converged(self) -> bool:
        self.countdown -= 1
        if self.j <= min(self.k, self.n - 1) or (self.countdown > 0 and self.j < self.size):
            return False
        self._ritz()
        value = np.abs(self.theta[self.wanted])
        enough = np.maximum(self.tol * value, rounding(self.theta, self.op.dtype))
        excess = float((self.residuals[self.wanted] / np.maximum(enough, np.finfo(float).tiny)).max())
        if excess > 1:
            self.countdown = 2 if excess > FAR else 1
            return False
        if not self.needed:
            return True
        x = suspects(self.theta, self.wanted, self.which, self.tol)
        growth = log_growth(x, np.r_[self.theta, self.discarded], np.asarray(self.betas))
        return bool((growth >= self.needed).all())

    def _breakdown(self) -> bool:
        """The basis spans an invariant subspace: all its Ritz values are eigenvalues."""
        self.beta = 0.0
        self._ritz()
        if self.j >= self.k:
            return True
        v = random_unit_vector(self.n, self.op, self.generator)
        v, _, norm = orthogonalize(v, self.basis[: self.j])
        self.basis[self.j] = v / norm
        return False

    def restart(self) -> None:
        """Keep the Ritz vectors nearest to the wanted ones, and the last basis vector."""
        kept = select(self.theta, min(self.k + 5, self.size - 1), self.which)
        self.discarded = np.r_[self.discarded, np.delete(self.theta, kept)]
        rows = torch.as_tensor(self.s[:, kept].T.copy(), dtype=self.op.dtype, device=self.op.device)
        m = len(kept)
        last = self.basis[self.j].clone()
        self.basis[:m] = rows @ self.basis[: self.j]
        self.basis[m] = last
        self.projected[:] = 0.0
        self.projected[range(m), range(m)] = self.theta[kept]
        self.scale = max(self.scale, float(np.abs(self.theta[kept]).max()))
        self.projected[m, :m] = self.projected[:m, m] = self.beta * self.s[-1, kept]
        self.j = m

    def result(self) -> EigenResult:
        self._ritz()
        chosen, error = self.wanted, rounding(self.theta, self.op.dtype)
        rows = torch.as_tensor(self.s[:, chosen], dtype=self.op.dtype, device=self.op.device)
        vectors = self.basis[: self.j].T @ rows
        residuals, tolerance = self.residuals[chosen], self.tol * np.abs(self.theta[chosen])
        return EigenResult(
            torch.from_numpy(self.theta[chosen].copy()),
            vectors,
            torch.from_numpy(np.maximum(residuals, tolerance) + error),
            torch.from_numpy(residuals),
            self.n_matvec,
            torch.from_numpy(residuals <= np.maximum(tolerance, error)),
        )
