"""Gains of the linear quadratic regulator, in continuous and in sampled time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from poise.control.riccati.care import solve_care
from poise.control.riccati.dare import solve_dare
from poise.control.riccati.weights import quadratic_problem


def lqr(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Float64[Tensor, "*batch m n"]:
    r"""Return the gain K of the feedback :math:`u = -K x` that minimises the integral of a quadratic cost.

    Arguments and errors are those of :func:`solve_care`; :math:`K = R^{-1} (B' P + M')`, of shape (..., m, n).

    References:
        Kalman (1960). Contributions to the theory of optimal control.

    Example:
        >>> lqr([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0]]).round(decimals=4)
        tensor([[1.0000, 1.7321]], dtype=torch.float64)
    """
    P = solve_care(A, B, Q, R, M)
    problem = quadratic_problem(A, B, Q, R, M)
    return torch.linalg.solve(problem.R, problem.B.mT @ P + problem.M.mT)


def dlqr(A: Any, B: Any, Q: Any, R: Any, M: Any = None) -> Float64[Tensor, "*batch m n"]:
    r"""Return the gain K of the feedback :math:`u = -K x` that minimises the sum of a quadratic cost over steps.

    Arguments and errors are those of :func:`solve_dare`; :math:`K = (R + B'PB)^{-1} (B'PA + M')`, of shape
    (..., m, n).

    References:
        Kalman (1960). Contributions to the theory of optimal control.
    """
    P = solve_dare(A, B, Q, R, M)
    problem = quadratic_problem(A, B, Q, R, M)
    left = problem.R + problem.B.mT @ P @ problem.B
    return torch.linalg.solve(left, problem.B.mT @ P @ problem.A + problem.M.mT)
