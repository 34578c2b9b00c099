"""The eigenvalues of a linearised map or flow that grow fastest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from poise.curvature import eigs
from poise.dynamics.systems.flow import Flow
from poise.dynamics.systems.system import Matrix, System

DENSE_LIMIT = 400
"""Up to this many unknowns the whole spectrum is computed, from one Jacobian product per column."""
GIVEN_LIMIT = 1500
"""The same where the Jacobian is given as a matrix."""
MOST_PRODUCTS = 4000
"""Most Jacobian products of a search without a matrix."""


@dataclass(frozen=True, slots=True)
class LeadingEigenvalues:
    """Eigenvalues, the fastest growing first.

    Attributes:
        values: of shape (k,).
        vectors: unit right eigenvectors, of shape (n, k).
        residuals: norms of ``J v - lambda M v``, of shape (k,).
        whole: whether these are all eigenvalues.
        notes: what the search could miss.
    """

    values: Complex[np.ndarray, " k"]
    vectors: Complex[np.ndarray, "n k"]
    residuals: Float[np.ndarray, " k"]
    whole: bool
    notes: list[str] = field(default_factory=list)


def leading_eigenvalues(system: System, x: Float[Tensor, " n"], k: int) -> LeadingEigenvalues:
    """Return the eigenvalues of the derivative that grow fastest.

    Small systems are treated densely. Large flows with a sparse Jacobian by shift-and-invert Arnoldi, at 0 and at the
    right end of Gershgorin's discs; other large systems by Arnoldi on Jacobian products.

    Args:
        system: a ``Map`` or ``Flow``.
        x: where to linearise, of shape (n,).
        k: how many, at least; all of them are returned where they are known.
    """
    n = x.numel()
    given = isinstance(system, Flow) and system.has_jacobian
    if n <= (GIVEN_LIMIT if given else DENSE_LIMIT) or k >= n - 1:
        found = dense_eigenvalues(system.jacobian(x), system.mass if isinstance(system, Flow) else None)
    elif isinstance(system, Flow) and given:
        found = rightmost_eigenvalues(system.jacobian(x), k, system.mass)
    else:
        found = krylov_eigenvalues(system, x, k)
    order = np.argsort(-system.growth_rates(found.values), kind="stable")
    return LeadingEigenvalues(
        found.values[order], found.vectors[:, order], found.residuals[order], found.whole, found.notes
    )


def dense_eigenvalues(jacobian: Matrix, mass: Matrix | None = None) -> LeadingEigenvalues:
    """Return all finite eigenvalues of ``J v = lambda M v``."""
    a = _dense(jacobian)
    b = None if mass is None else _dense(mass)
    values, vectors = scipy.linalg.eig(a, b)
    finite = np.isfinite(values)
    if b is not None:  # a singular mass matrix has infinite eigenvalues: constraints, which have no dynamics
        finite &= np.abs(values) < 1e12 * np.linalg.norm(a, 1) / np.linalg.norm(b, 1)
    values, vectors = values[finite], vectors[:, finite]
    vectors = vectors / np.linalg.norm(vectors, axis=0)
    right = vectors if b is None else b @ vectors
    return LeadingEigenvalues(values, vectors, np.linalg.norm(a @ vectors - right * values, axis=0), whole=True)


def shift_invert_eigenvalues(jacobian: Matrix, shift: float, k: int, mass: Matrix | None = None) -> LeadingEigenvalues:
    r"""Return the k eigenvalues of ``J v = lambda M v`` nearest to a shift.

    Arnoldi's method on :math:`(J - \sigma M)^{-1} M`, whose largest eigenvalues are :math:`1/(\lambda - \sigma)`; one
    sparse factorisation in all.

    Args:
        jacobian: of shape (n, n).
        shift: real; it must not be an eigenvalue.
        k: how many.
        mass: of shape (n, n); the identity if not given, and it may be singular.

    References:
        Saad (2011). Numerical Methods for Large Eigenvalue Problems, chapter 8.
    """
    a = scipy.sparse.csc_matrix(jacobian)
    n = a.shape[0]
    b = scipy.sparse.identity(n, format="csc") if mass is None else scipy.sparse.csc_matrix(mass)
    factors = scipy.sparse.linalg.splu(scipy.sparse.csc_matrix(a - shift * b))
    inverse = scipy.sparse.linalg.LinearOperator((n, n), matvec=lambda v: factors.solve(b @ v), dtype=a.dtype)
    start = np.random.default_rng(0).standard_normal(n)
    inverted, vectors = scipy.sparse.linalg.eigs(inverse, k=k, which="LM", v0=start)
    values = shift + 1.0 / inverted
    vectors = vectors / np.linalg.norm(vectors, axis=0)
    residuals = np.linalg.norm(a @ vectors - (b @ vectors) * values, axis=0)
    return LeadingEigenvalues(values, vectors, residuals, whole=False)


def rightmost_eigenvalues(jacobian: Matrix, k: int, mass: Matrix | None = None) -> LeadingEigenvalues:
    """Return eigenvalues of a large sparse Jacobian that include its rightmost real ones.

    Eigenvalues near 0 decide how slowly a stable system returns. An unstable one may be far from 0: a second search
    starts at the right end of Gershgorin's discs, beyond which there is none. A fast oscillation may still be nearer to
    neither; the note gives the frequency.

    Args:
        jacobian: of shape (n, n).
        k: how many near 0.
        mass: of shape (n, n); the identity if not given.
    """
    size = float(scipy.sparse.linalg.norm(scipy.sparse.csc_matrix(jacobian), 1)) or 1.0
    # Beside 0, because 0 itself is an eigenvalue where something is conserved.
    near_zero = shift_invert_eigenvalues(jacobian, 1e-6 * size, k, mass)
    if mass is not None:
        notes = [f"Only the {k} eigenvalues nearest to 0 were computed; no instability far from 0 was searched for."]
        return LeadingEigenvalues(near_zero.values, near_zero.vectors, near_zero.residuals, False, notes)
    end = rightmost_gershgorin(jacobian)
    if end <= 0.0:
        return near_zero
    end += 1e-6 * size  # the end itself may be an eigenvalue
    far = shift_invert_eigenvalues(jacobian, end, k)
    found = _union(near_zero, far)
    reach = float(np.abs(far.values - end).max())
    across = reach**2 - (end - min(found.values.real.max(), end)) ** 2
    frequency = math.sqrt(max(across, 0.0))
    notes = [
        f"Shift-and-invert saw every eigenvalue within {reach:.3g} of {end:.3g}, the largest real part possible: "
        f"no real eigenvalue further right is missing; growing oscillations faster than {frequency:.3g} rad per unit "
        "of time were not searched for."
    ]
    return LeadingEigenvalues(found.values, found.vectors, found.residuals, False, notes)


def rightmost_gershgorin(jacobian: Matrix) -> float:
    """Return the right end of Gershgorin's discs (by rows or by columns): no eigenvalue's real part exceeds it."""
    a = scipy.sparse.csr_matrix(jacobian)
    diagonal = a.diagonal()
    sums = [np.asarray(abs(a).sum(axis=axis)).ravel() for axis in (0, 1)]
    return min(float((diagonal + total - np.abs(diagonal)).max()) for total in sums)


def krylov_eigenvalues(system: System, x: Float[Tensor, " n"], k: int) -> LeadingEigenvalues:
    """Return the fastest growing eigenvalues from Jacobian products alone, by Arnoldi with Krylov-Schur restarts.

    Args:
        system: a ``Map`` (largest absolute value) or ``Flow`` (largest real part).
        x: where to linearise, of shape (n,).
        k: how many.

    Raises:
        ValueError: for a flow with a mass matrix.
    """
    if isinstance(system, Flow) and system.mass is not None:
        raise ValueError("a large Flow with a mass matrix needs jac, the whole derivative as a sparse matrix")
    found = eigs(
        system.operator(x),
        k,
        "LA" if isinstance(system, Flow) else "LM",
        tol=max(1e-8, 100 * torch.finfo(x.dtype).eps),
        method="arnoldi",
        generator=torch.Generator(x.device).manual_seed(0),
        max_matvecs=min(20 * x.numel(), MOST_PRODUCTS),
    )
    notes = []
    if not bool(found.converged.all()):
        notes = [
            f"{int(found.converged.sum())} of {k} eigenvalues had converged after {found.n_matvec} Jacobian products; "
            f"the first is off by up to {float(found.error_bounds[0]):.2g}. A flow with slow and fast parts needs jac."
        ]
    values, vectors, residuals = (part.cpu().numpy() for part in (found.values, found.vectors, found.residuals))
    return LeadingEigenvalues(values.astype(complex), vectors.astype(complex), residuals, False, notes)


def _union(first: LeadingEigenvalues, second: LeadingEigenvalues) -> LeadingEigenvalues:
    """Return both without pairs that were found twice (the same value and direction)."""
    overlap = np.abs(first.vectors.conj().T @ second.vectors)
    close = np.abs(first.values[:, None] - second.values) <= 1e-6 * (1.0 + np.abs(second.values))
    # In a multiple eigenvalue, directions of the second search may be mixtures of the first's.
    basis = np.linalg.qr(first.vectors)[0]
    inside = np.linalg.norm(basis.conj().T @ second.vectors, axis=0) > 1 - 1e-6
    new = ~(close.any(axis=0) & (inside | (overlap > 1 - 1e-6).any(axis=0)))
    return LeadingEigenvalues(
        np.append(first.values, second.values[new]),
        np.concatenate([first.vectors, second.vectors[:, new]], axis=1),
        np.append(first.residuals, second.residuals[new]),
        False,
    )


def _dense(matrix: Matrix) -> np.ndarray:
    return matrix.toarray() if scipy.sparse.issparse(matrix) else np.asarray(matrix)
