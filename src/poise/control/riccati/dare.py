"""The discrete algebraic Riccati equation, in batches."""

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


def solve_dare(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Float64[Tensor, "*batch n n"]:
    r"""Return the stabilising solution of discrete algebraic Riccati equations.

    .. math:: P = A' P A - (A' P B + M) (R + B' P B)^{-1} (B' P A + M') + Q

    The feedback :math:`u = -(R + B'PB)^{-1} (B'PA + M') x` then minimises the sum of :math:`x'Qx + 2x'Mu + u'Ru`, and
    the closed loop decays, also where another solution of the equation does not stabilise. A Cayley transform turns
    the symplectic pencil into a Hamiltonian matrix, whose stable eigenvectors give P; A may be singular. Two Newton
    steps refine it, and where eigenvectors are nearly dependent SciPy's QZ method is used.

    Args:
        A: tensor or array of shape (..., n, n).
        B: of shape (..., n, m).
        Q: weight of the state, symmetric, of shape (..., n, n).
        R: weight of the input, symmetric and positive definite, of shape (..., m, m).
        M: weight of their product, of shape (..., n, m); zero by default.

    Returns:
        P of shape (..., n, n) in float64, without a gradient. Batch shapes broadcast.

    Raises:
        ValueError: if shapes do not fit, an entry is not finite, ``R`` is not positive definite or [[Q, M], [M', R]]
            is not positive semidefinite.
        NotStabilizable: (a ``numpy.linalg.LinAlgError``) if there is no stabilising solution; it names the mode.

    References:
        Pappas, Laub and Sandell (1980). On the numerical solution of the discrete-time algebraic Riccati equation;
        Hewer (1971). An iterative technique for the computation of the steady state gains.

    Example:
        >>> solve_dare([[2.0]], [[1.0]], [[0.0]], [[1.0]])  # P = 0 solves the equation too, and stabilises nothing
        tensor([[3.]], dtype=torch.float64)
    """
    problem = quadratic_problem(A, B, Q, R, M)
    with torch.no_grad():
        return dare_solution(problem)


def dare_solution(problem: QuadraticProblem) -> Float64[Tensor, "*batch n n"]:
    """Return the stabilising solution for matrices that were checked.

    Raises:
        NotStabilizable: if there is none; it names the mode.
    """
    pencil, unit = _cayley(problem)
    first = stable_subspace_solution(pencil)
    P, found = unit * first.P, first.found
    for _ in range(2):
        residual, closed = _residual(P, problem)
        better = P + _correction(residual, closed, first.vectors)
        lower = found & (_size(_residual(better, problem)[0]) < _size(residual))
        P = torch.where(lower[..., None, None], better, P)
    residual, closed = _residual(P, problem)
    scale = _size(P) * (1 + _size(problem.A).square()) + _size(problem.Q)
    small = found & (_size(residual) <= _RESIDUAL * scale)
    values = torch.linalg.eigvals(torch.where(small[..., None, None], closed, torch.zeros_like(closed)))
    good = small & (values.abs() < 1).all(-1)
    return P if bool(good.all()) else _one_by_one(problem, P, good)


def _cayley(problem: QuadraticProblem) -> tuple[Tensor, Tensor]:
    """Return a matrix with eigenvalues (z - 1) / (z + 1) for the eigenvalues z of the pencil, and the unit of P in it.

    No stabilising solution exists where -1 is an eigenvalue of the pencil; it is then moved by a rounding error, and
    what comes out is recognised as no solution.
    """
    A, B, Q, R, M = problem.tensors
    inverse = torch.linalg.inv(R)
    shifted, weight = A - B @ inverse @ M.mT, Q - M @ inverse @ M.mT
    G = B @ inverse @ B.mT
    unit, identity, zero = balance(weight, G), torch.eye(A.shape[-1]).to(A).expand_as(A), torch.zeros_like(A)
    before = torch.cat([torch.cat([shifted, zero], -1), torch.cat([-weight / unit, identity], -1)], -2)
    after = torch.cat([torch.cat([identity, unit * G], -1), torch.cat([zero, shifted.mT], -1)], -2)
    solution, _ = torch.linalg.solve_ex(before + after, before - after)
    return torch.nan_to_num(solution, 0.0, 0.0, 0.0), unit  # a singular sum: recognised below, as nothing is stable


def _residual(P: Tensor, problem: QuadraticProblem) -> tuple[Tensor, Tensor]:
    """Return what is left of the equation, and the closed loop."""
    A, B, Q, R, M = problem.tensors
    gain, _ = torch.linalg.solve_ex(R + B.mT @ P @ B, B.mT @ P @ A + M.mT)
    residual = A.mT @ P @ A - (A.mT @ P @ B + M) @ gain + Q - P
    return (residual + residual.mT) / 2, A - B @ gain


def _size(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)


def _correction(residual: Tensor, closed: Tensor, vectors: Tensor) -> Tensor:
    """Solve ``D = closed' D closed + residual`` in the basis of the closed loop's eigenvectors."""
    factors, pivots, _ = torch.linalg.lu_factor_ex(vectors)
    values = torch.linalg.lu_solve(factors, pivots, closed.to(vectors.dtype) @ vectors).diagonal(dim1=-2, dim2=-1)
    rotated = vectors.mH @ residual.to(vectors.dtype) @ vectors
    scaled = rotated / (1 - values.conj()[..., :, None] * values[..., None, :])
    left = torch.linalg.lu_solve(factors, pivots, scaled.mH, left=False).mH
    D = torch.linalg.lu_solve(factors, pivots, left, left=False).real
    return (D + D.mT) / 2


def _one_by_one(problem: QuadraticProblem, P: Tensor, good: Tensor) -> Tensor:
    """Solve what eigenvectors did not, by SciPy's QZ method; explain what has no solution."""
    P, batch = P.clone(), P.shape[:-2]
    for index in (~good).nonzero().tolist():
        A, B, Q, R, M = (tensor[tuple(index)].cpu().numpy() for tensor in problem.tensors)
        where = f" (entry {tuple(index)} of the batch)" if batch else ""
        if reason := explain_failure(A, B, Q, R, M, sampled=True):
            raise NotStabilizable(f"{reason}{where}")
        try:
            solution = scipy.linalg.solve_discrete_are(A, B, Q, R, s=M)
        except np.linalg.LinAlgError as error:
            raise NotStabilizable(f"no stabilising solution was found{where}: {error}") from error
        gain = np.linalg.solve(R + B.T @ solution @ B, B.T @ solution @ A + M.T)
        closed = np.linalg.eigvals(A - B @ gain)
        if not np.abs(closed).max() < 1:
            raise NotStabilizable(
                f"no stabilising solution was found{where}: the closed loop would keep eigenvalue "
                f"{closed[np.abs(closed).argmax()]:.4g}"
            )
        P[tuple(index)] = torch.as_tensor(solution).to(P)
    return P
