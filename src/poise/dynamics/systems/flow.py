"""A flow: a state and its velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature import FunctionOperator
from poise.dynamics.systems.system import Field, Jvp, Matrix, System


class Flow(System):
    r"""An autonomous differential equation :math:`M \dot x = f(x)` on flat vectors.

    Args:
        f: takes a state of shape (n,), returns its velocity (times the mass matrix).
        jvp: ``jvp(x, v)``, the derivative of ``f`` at ``x`` along ``v``; from ``jac``, else by ``torch.func.jvp``. For
            a black box, :func:`central_difference` of ``f``.
        jac: ``jac(x)``, the whole derivative, a tensor, an array or a SciPy sparse matrix of shape (n, n). A sparse
            one lets :func:`stability` treat many thousand unknowns.
        mass: the matrix :math:`M`, of shape (n, n); the identity if not given. It may be singular (algebraic
            equations).

    Examples:
        >>> import torch
        >>> from poise.dynamics import Flow, stability
        >>> pendulum = Flow(lambda x: torch.stack([x[1], -torch.sin(x[0]) - 0.5 * x[1]]))
        >>> stability(pendulum, torch.zeros(2, dtype=torch.float64)).verdict
        'stable'
    """

    per = "unit of time"

    def __init__(
        self, f: Field, jvp: Jvp | None = None, jac: Callable[[Tensor], Any] | None = None, mass: Any = None
    ) -> None:
        self._jac = jac
        self._matrix_at: tuple[Tensor, Matrix] | None = None
        self.mass = None if mass is None else _matrix(mass)
        super().__init__(f, self._product if jvp is None and jac is not None else jvp)

    @property
    def has_jacobian(self) -> bool:
        """Whether the whole derivative is given."""
        return self._jac is not None

    def residual(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the velocity."""
        return self(x)

    def residual_jvp(self, x: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the derivative of the velocity at ``x`` along ``v``."""
        return self.jvp(x, v)

    def growth_rates(self, eigenvalues: np.ndarray) -> np.ndarray:
        """Return the real parts."""
        return np.real(eigenvalues)

    def jacobian(self, x: Float[Tensor, " n"]) -> Matrix:
        """Return the whole derivative of ``f`` at ``x``.

        Raises:
            ValueError: if ``jac`` returned another shape.
        """
        if self._jac is None:
            return super().jacobian(x)
        matrix = _matrix(self._jac(x))
        if matrix.shape != (x.numel(), x.numel()):
            raise ValueError(f"jac must return a matrix of shape {(x.numel(),) * 2}, got {matrix.shape}")
        return matrix

    def operator(self, x: Float[Tensor, " n"]) -> FunctionOperator:
        """Return the derivative of ``f`` at ``x`` as a linear operator; a given Jacobian is taken once."""
        if self._jac is None:
            return super().operator(x)
        matrix = self.jacobian(x)

        def product(a: Matrix) -> Callable[[Tensor], Tensor]:
            return lambda v: torch.as_tensor(a @ v.cpu().numpy(), dtype=v.dtype, device=v.device)

        return FunctionOperator(
            product(matrix),
            x.numel(),
            rmatvec=product(_matrix(matrix.T)),
            symmetric=False,
            dtype=x.dtype,
            device=x.device,
        )

    def solve_mass(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the solution of ``mass @ y = b`` as a function of ``b``.

        Raises:
            ValueError: if the mass matrix is singular.
        """
        mass = self.mass
        if mass is None:
            return lambda b: b
        try:
            solve = scipy.sparse.linalg.splu(scipy.sparse.csc_matrix(mass)).solve
        except RuntimeError as error:
            raise ValueError("mass must be invertible to follow the flow in time, got a singular matrix") from error
        return solve

    def _product(self, x: Tensor, v: Tensor) -> Tensor:
        if self._matrix_at is None or not torch.equal(self._matrix_at[0], x):
            self._matrix_at = x.clone(), self.jacobian(x)
        return torch.as_tensor(self._matrix_at[1] @ v.cpu().numpy(), dtype=v.dtype, device=v.device)


def _matrix(matrix: Any) -> Matrix:
    if isinstance(matrix, scipy.sparse.sparray | scipy.sparse.spmatrix):
        return scipy.sparse.csc_matrix(matrix)
    return torch.as_tensor(matrix).detach().cpu().numpy()
