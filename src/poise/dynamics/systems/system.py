"""What maps and flows have in common: a state, a field on it, and the field's derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature import FunctionOperator

Field = Callable[[Tensor], Tensor]
Jvp = Callable[[Tensor, Tensor], Tensor]
Matrix = np.ndarray | scipy.sparse.csc_matrix


class System(ABC):
    """A field on flat vectors: where a map goes to, or the velocity of a flow.

    Args:
        field: takes a flat vector, returns one of the same shape.
        jvp: ``jvp(x, v)``, the derivative of ``field`` at ``x`` along ``v``; by ``torch.func.jvp`` if not given.
    """

    per: str
    """Unit of time of its rates."""

    def __init__(self, field: Field, jvp: Jvp | None) -> None:
        self._field = field
        self._jvp = jvp

    @abstractmethod
    def residual(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return what vanishes at an equilibrium."""

    @abstractmethod
    def residual_jvp(self, x: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the derivative of the residual at ``x`` along ``v``."""

    @abstractmethod
    def growth_rates(self, eigenvalues: np.ndarray) -> np.ndarray:
        """Return the exponential rate at which each eigenvector grows, negative where it decays."""

    def __call__(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the field at ``x``.

        Raises:
            ValueError: if it has another shape than ``x``.
        """
        y = torch.as_tensor(self._field(x))
        if y.shape != x.shape:
            raise ValueError(
                f"a {type(self).__name__} must return the shape it takes, {tuple(x.shape)}; got {tuple(y.shape)}"
            )
        return y

    def jvp(self, x: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the derivative of the field at ``x`` along ``v``.

        Raises:
            TypeError: if torch cannot differentiate the field.
        """
        if self._jvp is not None:
            return torch.as_tensor(self._jvp(x, v)).detach()
        try:
            return torch.func.jvp(self, (x,), (v,))[1].detach()
        except RuntimeError as error:
            raise TypeError(
                f"torch cannot differentiate this {type(self).__name__} forwards ({error}); "
                "give jvp, for example central_difference of the same function"
            ) from error

    def jacobian(self, x: Float[Tensor, " n"]) -> Matrix:
        """Return the whole derivative of the field at ``x``, with one product per column."""
        columns = [self.jvp(x, unit) for unit in torch.eye(x.numel(), dtype=x.dtype, device=x.device)]
        return torch.stack(columns, dim=1).cpu().numpy()

    def operator(self, x: Float[Tensor, " n"]) -> FunctionOperator:
        """Return the derivative of the field at ``x`` as a linear operator, with its transpose where torch has it."""
        return FunctionOperator(
            lambda v: self.jvp(x, v),
            x.numel(),
            rmatvec=self._transposed(x) if self._jvp is None else None,
            symmetric=False,
            dtype=x.dtype,
            device=x.device,
        )

    def _transposed(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: torch.func.vjp(self, x)[1](u)[0].detach()


def central_difference(f: Callable[[Tensor], Any]) -> Jvp:
    """Return the Jacobian product of a black box, by central differences.

    Args:
        f: takes a flat vector, returns a tensor or an array of the same shape.

    Returns:
        ``jvp(x, v)``. The relative error is about the precision to the power 2/3: 1e-10 in float64.
    """

    def jvp(x: Tensor, v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v)
        if length == 0:
            return torch.zeros_like(v)
        step = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(torch.linalg.vector_norm(x))) / length
        ahead, behind = torch.as_tensor(f(x + step * v)), torch.as_tensor(f(x - step * v))
        return (ahead - behind) / (2 * step)

    return jvp


def check_state(name: str, x: Any) -> Float[Tensor, " n"]:
    """Return a state as a detached flat tensor.

    Raises:
        TypeError: if it does not hold real floating-point numbers.
        ValueError: if it is not one-dimensional, is empty or is not finite.
    """
    x = torch.as_tensor(x).detach()
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must hold real floating-point numbers, got {x.dtype}")
    if x.ndim != 1 or not x.numel():
        raise ValueError(f"{name} must be a flat vector of at least one number, got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite; entry {int((~torch.isfinite(x)).nonzero()[0])} is not")
    return x
