"""The continuous algebraic Riccati equation, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float64
from torch import Tensor

from poise.control.riccati.modes import NotStabilizable, explain_failure
from poise.control.riccati.stable_subspace import balance, stable_subspace_solution
from poise.control.riccati.weights import QuadraticProblem, quadratic_problem

_RESIDUAL = 1e-8
_GOOD = 1e-13
_REFINEMENTS = 2


def solve_care(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Float64[Tensor, "*batch n n"]:
    r"""Return the stabilising solution of continuous algebraic Riccati equations.

    .. math:: A' P + P A - (P B + M) R^{-1} (B' P + M') + Q = 0

    The feedback :math:`u = -R^{-1} (B' P + M') x` then minimises the integral of :math:`x'Qx + 2x'Mu + u'Ru`, and the
    closed loop decays. Computed in float64 from the eigenvectors of the Hamiltonian matrix and refined by Newton's
    method; where the eigenvectors are nearly dependent, by SciPy's Schur method. Gradients with respect to all
    arguments are those of the implicit equation.

    Args:
        A: tensor or array of shape (..., n, n).
        B: of shape (..., n, m).
        Q: weight of the state, symmetric, of shape (..., n, n).
        R: weight of the input, symmetric and positive definite, of shape (..., m, m).
        M: weight of their product, of shape (..., n, m); zero by default.

    Returns:
        P of shape (..., n, n) in float64. Batch shapes broadcast.

    Raises:
        ValueError: if shapes do not fit, an entry is not finite, ``R`` is not positive definite or [[Q, M], [M', R]]
            is not positive semidefinite.
        NotStabilizable: (a ``numpy.linalg.LinAlgError``) if there is no stabilising solution; it names the mode.

    References:
        Laub (1979). A Schur method for solving algebraic Riccati equations; Kleinman (1968).

    Example:
        >>> solve_care([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0]]).round(decimals=4)
        tensor([[1.7321, 1.0000],
                [1.0000, 1.7321]], dtype=torch.float64)
    """
    problem = quadratic_problem(A, B, Q, R, M)
    with torch.no_grad():
        P = care_solution(problem)
    if not any(tensor.requires_grad for tensor in problem.tensors):
        return P
    return _with_gradient(problem, P)


def care_solution(problem: QuadraticProblem) -> Float64[Tensor, "*batch n n"]:
    """Return the stabilising solution for matrices that were checked, without a gradient.

    Raises:
        NotStabilizable: if there is none; it names the mode.
    """
    A, B, Q, R, M = problem.tensors
    inverse = torch.linalg.inv(R)
    shifted, weight = A - B @ inverse @ M.mT, Q - M @ inverse @ M.mT
    G = B @ inverse @ B.mT
    unit = balance(weight, G)
    top, bottom = torch.cat([shifted, -unit * G], -1), torch.cat([-weight / unit, -shifted.mT], -1)
    first = stable_subspace_solution(torch.cat([top, bottom], -2))
    P, found = unit * first.P, first.found
    scale, residual = _scale(P, shifted, G, weight), _residual(P, shifted, G, weight)
    for _ in range(_REFINEMENTS):
        if bool((_size(residual) <= _GOOD * scale)[found].all()):
            break
        better = P + _correction(residual, shifted - G @ P, first.vectors)
        left = _residual(better, shifted, G, weight)
        lower = (found & (_size(left) < _size(residual)))[..., None, None]
        P, residual = torch.where(lower, better, P), torch.where(lower, left, residual)
    closed = torch.linalg.eigvals(torch.where(found[..., None, None], shifted - G @ P, -torch.eye(A.shape[-1]).to(A)))
    good = found & (_size(residual) <= _RESIDUAL * scale) & (closed.real < 0).all(-1)
    if bool(good.all()):
        return P
    return _one_by_one(problem, P, good)


def _residual(P: Tensor, A: Tensor, G: Tensor, Q: Tensor) -> Tensor:
    half = P @ A
    return half + half.mT - P @ G @ P + Q


def _size(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)


def _scale(P: Tensor, A: Tensor, G: Tensor, Q: Tensor) -> Tensor:
    """Return the size of the terms of the equation, against which a residual is small or not."""
    size = _size(P)
    return 2 * size * _size(A) + size.square() * _size(G) + _size(Q)


def _correction(residual: Tensor, closed: Tensor, vectors: Tensor) -> Tensor:
    """Solve ``closed' D + D closed + residual = 0`` in the basis of the closed loop's eigenvectors."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(vectors)
    complex_closed = closed.to(vectors.dtype)
    values = torch.linalg.lu_solve(factors, pivots, complex_closed @ vectors).diagonal(dim1=-2, dim2=-1)
    rotated = vectors.mH @ residual.to(vectors.dtype) @ vectors
    scaled = -rotated / (values.conj()[..., :, None] + values[..., None, :])
    left = torch.linalg.lu_solve(factors, pivots, scaled.mH, adjoint=False, left=False).mH
    D = torch.linalg.lu_solve(factors, pivots, left, left=False).real
    return (D + D.mT) / 2


def _with_gradient(problem: QuadraticProblem, P: Tensor) -> Tensor:
    """Return P with the gradient of the implicit equation: one Newton step whose linear part is held fixed."""
    A, B, Q, R, M = problem.tensors
    product = P @ B + M
    residual = A.mT @ P + P @ A - product @ torch.linalg.solve(R, product.mT) + Q
    with torch.no_grad():
        closed = A - B @ torch.linalg.solve(R, product.mT)
        identity = torch.eye(A.shape[-1]).to(A).expand_as(A)
        # Of a row-major vector: D -> closed' D + D closed.
        lyapunov = _kron(closed.mT, identity) + _kron(identity, closed.mT)
    step = torch.linalg.solve(lyapunov, -residual.flatten(-2)[..., None])
    D = step.reshape(P.shape)
    return P + (D + D.mT) / 2


def _kron(a: Tensor, b: Tensor) -> Tensor:
    n = a.shape[-1]
    return torch.einsum("...ij,...kl->...ikjl", a, b).reshape(*a.shape[:-2], n * n, n * n)


def _one_by_one(problem: QuadraticProblem, P: Tensor, good: Tensor) -> Tensor:
    """Solve what eigenvectors did not, by SciPy's Schur method; explain what has no solution."""
    P, batch = P.clone(), P.shape[:-2]
    for index in (~good).nonzero().tolist():
        A, B, Q, R, M = (tensor[tuple(index)].cpu().numpy() for tensor in problem.tensors)
        where = f" (entry {tuple(index)} of the batch)" if batch else ""
        if reason := explain_failure(A, B, Q, R, M, sampled=False):
            raise NotStabilizable(f"{reason}{where}")
        try:
            solution = scipy.linalg.solve_continuous_are(A, B, Q, R, s=M)
        except np.linalg.LinAlgError as error:
            raise NotStabilizable(f"no stabilising solution was found{where}: {error}") from error
        closed = np.linalg.eigvals(A - B @ np.linalg.solve(R, B.T @ solution + M.T))
        if not closed.real.max() < 0:
            raise NotStabilizable(
                f"no stabilising solution was found{where}: the closed loop would keep eigenvalue "
                f"{closed[closed.real.argmax()]:.4g}"
            )
        P[tuple(index)] = torch.as_tensor(solution).to(P)
    return P
