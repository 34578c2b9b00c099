"""Tracking of a reference by a Riccati equation that is solved anew at the current error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from poise.control.riccati.care import care_solution
from poise.control.riccati.modes import NotStabilizable
from poise.control.riccati.weights import QuadraticProblem, quadratic_problem

Factorize = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class SDREController:
    r"""State-dependent Riccati tracking.

    With the error :math:`e = x - x_r` factorised as :math:`\dot e = A(x_r, u_r, e) e + B(x) (u - u_r)`, the feedback is
    :math:`u = u_r - R^{-1} B' P e`, where P solves the Riccati equation for A and B as they are now. Given the
    Jacobian at the reference in place of A, it is the linear quadratic regulator.

    Args:
        factorize: ``factorize(xr, ur, e)`` returns A of shape (..., n, n) and B of shape (..., n, m):
            ``SDCModel.factorize``, ``Birotor().factorize``, or a linearisation.
        Q: weight of the error, of shape (n, n).
        R: weight of the input, of shape (m, m).
        u_min: smallest inputs, a number or of shape (m,); no limit by default.
        u_max: largest inputs.
        on_failure: what to do where the Riccati equation has no stabilising solution: ``"hold"`` the gain of the step
            before (at the first step, no feedback) and count it, or ``"raise"``.

    Attributes:
        n_failures: how often a gain was held.
        gain: of the last step, of shape (..., m, n); ``None`` before the first.

    Raises:
        ValueError: if a weight is out of range or ``u_min`` is not below ``u_max``.

    References:
        Richards et al. (2023), arXiv:2302.02529; Cloutier (1997). State-dependent Riccati equation techniques.
    """

    def __init__(
        self,
        factorize: Factorize,
        Q: Any,
        R: Any,
        u_min: Any = None,
        u_max: Any = None,
        on_failure: Literal["hold", "raise"] = "hold",
    ) -> None:
        if on_failure not in ("hold", "raise"):
            raise ValueError(f"on_failure must be 'hold' or 'raise', got {on_failure!r}")
        self._factorize, self._on_failure = factorize, on_failure
        Q, R = (torch.as_tensor(weight).to(torch.float64) for weight in (Q, R))
        n, m = len(Q), len(R)
        checked = quadratic_problem(torch.zeros(n, n), torch.zeros(n, m), Q, R)
        self._Q, self._R, self._M = checked.Q, checked.R, checked.M
        self._low, self._high = (_limit(value, m) for value in (u_min, u_max))
        if self._low is not None and self._high is not None and not bool((self._low < self._high).all()):
            raise ValueError(f"u_min must be below u_max, got {self._low.tolist()} and {self._high.tolist()}")
        self.reset()

    def reset(self) -> None:
        """Forget the gain of the last step and the count of failures."""
        self.gain: Tensor | None = None
        self.n_failures = 0

    def __call__(
        self, x: Float64[Tensor, "*batch n"], xr: Float64[Tensor, "*batch n"], ur: Float64[Tensor, "*batch m"]
    ) -> Float64[Tensor, "*batch m"]:
        """Return the input, between its limits.

        Args:
            x: states, of shape (..., n).
            xr: states of the reference.
            ur: inputs of the reference, of shape (..., m).

        Raises:
            NotStabilizable: if there is no stabilising gain and ``on_failure`` is ``"raise"``.
        """
        e = x - xr
        with torch.no_grad():
            A, B = self._factorize(xr, ur, e)
            self.gain = self._gains(A.to(torch.float64), B.to(torch.float64))
        u = ur - (self.gain @ e[..., None])[..., 0]
        return u if self._low is None and self._high is None else u.clamp(self._low, self._high)

    def _gains(self, A: Tensor, B: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        A, B = A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:])
        try:
            return self._solved(A, B)
        except (NotStabilizable, ValueError):  # ValueError: LAPACK's of entries that are not finite
            if self._on_failure == "raise":
                raise
        if not batch:
            self.n_failures += 1
            return torch.zeros_like(B.mT) if self.gain is None else self.gain
        gains = torch.zeros_like(B.mT) if self.gain is None else self.gain.clone()
        for index in torch.cartesian_prod(*(torch.arange(size) for size in batch)).reshape(-1, len(batch)).tolist():
            try:
                gains[tuple(index)] = self._solved(A[tuple(index)], B[tuple(index)])
            except (NotStabilizable, ValueError):
                self.n_failures += 1
        return gains

    def _solved(self, A: Tensor, B: Tensor) -> Tensor:
        if not bool(torch.isfinite(A).all() and torch.isfinite(B).all()):
            raise ValueError("factorize must return finite matrices, got NaN or infinite entries")
        batch = A.shape[:-2]
        Q, R, M = (weight.expand(*batch, *weight.shape) for weight in (self._Q, self._R, self._M))
        P = care_solution(QuadraticProblem(A, B, Q, R, M))
        return torch.linalg.solve(R, B.mT @ P)


def _limit(value: Any, m: int) -> Tensor | None:
    return None if value is None else torch.as_tensor(value).to(torch.float64).expand(m)
