"""What the matrices of a linear quadratic problem must be before a Riccati equation is solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

_ROUNDING = 1e-10  # of the largest eigenvalue: how far below zero rounding may move an eigenvalue that is zero


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticProblem:
    """A linear system and a quadratic cost, of one batch shape and in float64.

    Attributes:
        A: of shape (..., n, n).
        B: of shape (..., n, m).
        Q: weight of the state, of shape (..., n, n).
        R: weight of the input, of shape (..., m, m).
        M: weight of their product, of shape (..., n, m).
    """

    A: Float64[Tensor, "*batch n n"]
    B: Float64[Tensor, "*batch n m"]
    Q: Float64[Tensor, "*batch n n"]
    R: Float64[Tensor, "*batch m m"]
    M: Float64[Tensor, "*batch n m"]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A, B, Q, R and M."""
        return self.A, self.B, self.Q, self.R, self.M


def quadratic_problem(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> QuadraticProblem:
    """Return the matrices in float64, broadcast to one batch shape, after checking them.

    Args:
        A: of shape (..., n, n).
        B: of shape (..., n, m).
        Q: symmetric, of shape (..., n, n).
        R: symmetric and positive definite, of shape (..., m, m).
        M: of shape (..., n, m); zero by default.

    Raises:
        ValueError: if shapes do not fit, an entry is not finite, ``Q`` or ``R`` is not symmetric, ``R`` is not
            positive definite, or [[Q, M], [M', R]] is not positive semidefinite.
    """
    A, B, Q, R = (_matrix(name, value) for name, value in (("A", A), ("B", B), ("Q", Q), ("R", R)))
    n, m = A.shape[-1], B.shape[-1]
    M = torch.zeros(n, m, dtype=A.dtype, device=A.device) if M is None else _matrix("M", M)
    wanted = {"A": (A, n, n), "B": (B, n, m), "Q": (Q, n, n), "R": (R, m, m), "M": (M, n, m)}
    for name, (value, rows, columns) in wanted.items():
        if value.shape[-2:] != (rows, columns):
            raise ValueError(f"{name} must have shape (..., {rows}, {columns}), got {tuple(value.shape)}")
    try:
        batch = torch.broadcast_shapes(*(value.shape[:-2] for value, _, _ in wanted.values()))
    except RuntimeError as error:
        shapes = {name: tuple(value.shape[:-2]) for name, (value, _, _) in wanted.items()}
        raise ValueError(f"the batch shapes of A, B, Q, R and M must broadcast, got {shapes}") from error
    problem = QuadraticProblem(*(value.expand(*batch, *value.shape[-2:]) for value, _, _ in wanted.values()))
    _check_weights(Q, R, problem)
    return problem


def _matrix(name: str, value: Any) -> Tensor:
    matrix = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    if matrix.is_complex() or matrix.dtype == torch.bool:
        raise ValueError(f"{name} must hold real numbers, got {matrix.dtype}")
    matrix = matrix.to(torch.float64)
    if matrix.ndim < 2 or not matrix.numel():
        raise ValueError(f"{name} must be a matrix or a batch of matrices, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return matrix


@torch.no_grad()
def _check_weights(Q: Tensor, R: Tensor, problem: QuadraticProblem) -> None:
    for name, weight in (("Q", Q), ("R", R)):
        if not torch.allclose(weight, weight.mT, rtol=1e-10, atol=1e-12 * float(weight.abs().max())):
            raise ValueError(
                f"{name} must be symmetric, got a matrix that differs from its transpose by "
                f"{float((weight - weight.mT).abs().max()):.3g}"
            )
    smallest = torch.linalg.eigvalsh(R).min()
    if not smallest > 0:
        raise ValueError(f"R must be positive definite, got a smallest eigenvalue of {float(smallest):.4g}")
    top = torch.cat([problem.Q, problem.M], -1)
    whole = torch.cat([top, torch.cat([problem.M.mT, problem.R], -1)], -2)
    values = torch.linalg.eigvalsh(whole)
    if bool((values[..., 0] < -_ROUNDING * values[..., -1]).any()):
        raise ValueError(
            "[[Q, M], [M', R]] must be positive semidefinite, got a smallest eigenvalue of "
            f"{float(values[..., 0].min()):.4g}"
        )
