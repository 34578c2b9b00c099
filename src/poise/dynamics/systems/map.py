"""A map: a state and the state one step later."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.system import Field, Jvp, System


class Map(System):
    """A map of flat vectors, such as one step of training, of retraining, or of a closed loop.

    ``F @ G`` is the map that does ``G`` and then ``F``; the orbit of period two of ``F`` is a fixed point of ``F @ F``.

    Args:
        step: takes a state of shape (n,), returns the next one. It must be deterministic.
        jvp: ``jvp(x, v)``, the derivative of ``step`` at ``x`` along ``v``; by ``torch.func.jvp`` if not given. For a
            black box, :func:`central_difference` of ``step``.

    Examples:
        >>> import torch
        >>> from poise.dynamics import Map, stability
        >>> logistic = Map(lambda x: 3.2 * x * (1 - x))
        >>> stability(logistic, torch.tensor([0.6875], dtype=torch.float64)).verdict
        'unstable'
    """

    per = "step"

    def __init__(self, step: Field, jvp: Jvp | None = None) -> None:
        super().__init__(step, jvp)

    def residual(self, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return how far a step goes."""
        return self(x) - x

    def residual_jvp(self, x: Float[Tensor, " n"], v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the derivative of the residual at ``x`` along ``v``."""
        return self.jvp(x, v) - v

    def growth_rates(self, eigenvalues: np.ndarray) -> np.ndarray:
        """Return the logarithms of the absolute multipliers."""
        with np.errstate(divide="ignore"):
            return np.log(np.abs(eigenvalues))

    def __matmul__(self, first: Map) -> Map:
        """Return the map that does ``first`` and then this one."""

        def jvp(x: Tensor, v: Tensor) -> Tensor:
            return self.jvp(first(x), first.jvp(x, v))

        both_by_torch = self._jvp is None and first._jvp is None
        return Map(lambda x: self(first(x)), None if both_by_torch else jvp)
