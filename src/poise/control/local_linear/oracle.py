"""A system that can only be asked for trajectories under a feedback policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from poise.control.sdre.tracking import Dynamics, rk4_step

Oracle = Callable[[Tensor, Tensor], Tensor]
"""``oracle(ubar, gains) -> states``: trajectories under u_k = ubar_k + K_k x_k from one fixed start.

``ubar`` has shape (runs, K, m), ``gains`` (K, m, n), the states (runs, K + 1, n).
"""


class FunctionOracle:
    """The trajectories of a known f(x, u), whose input is held over each period.

    Args:
        dynamics: ``f(x, u)`` of batches, the velocity of the state.
        x0: the start, of shape (n,).
        dt: sampling period.
        substeps: Runge-Kutta steps a period.

    Raises:
        ValueError: if ``dt`` or ``substeps`` is out of range, or ``x0`` is not a finite vector.
    """

    def __init__(self, dynamics: Dynamics, x0: Float64[Tensor, " n"], dt: float, substeps: int = 1) -> None:
        if not 0 < dt < float("inf") or substeps < 1:
            raise ValueError(f"dt must be positive and substeps at least 1, got {dt!r} and {substeps!r}")
        self._x0 = torch.as_tensor(x0).to(torch.float64)
        if self._x0.ndim != 1 or not bool(torch.isfinite(self._x0).all()):
            raise ValueError(f"x0 must be a finite vector, got {self._x0.tolist()}")
        self._dynamics, self._dt, self._substeps = dynamics, dt, substeps

    def __call__(
        self, ubar: Float64[Tensor, "runs K m"], gains: Float64[Tensor, "K m n"]
    ) -> Float64[Tensor, "runs times n"]:
        """Return the states of all runs."""
        x = self._x0.expand(len(ubar), -1)
        states = [x]
        for k in range(ubar.shape[1]):
            u = ubar[:, k] + x @ gains[k].mT
            for _ in range(self._substeps):
                x = rk4_step(self._dynamics, x, u, self._dt / self._substeps)
            states.append(x)
        return torch.stack(states, 1)
