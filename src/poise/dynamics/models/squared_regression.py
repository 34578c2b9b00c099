"""Squared regression model, ``f(x) = <u^2 - v^2, x>``: the limit of its gradient flow solves a convex problem."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_MOST_NEWTON_STEPS = 100


class SquaredRegression:
    """Linear regression whose coefficients are ``beta = u^2 - v^2``, with loss ``|X beta - y|^2 / (2 n)``.

    Gradient flow multiplies ``u`` by ``exp(-2 rho)`` and ``v`` by ``exp(2 rho)`` where ``rho = X^T lam`` stays in the
    span of the inputs, so its limit is fixed by ``n`` numbers ``lam``, the minimum of a smooth convex function. No
    integration is needed, and the sharpness of the gradient-flow solution is exact to rounding.

    Args:
        u: weights, shape (features,). Computed in float64, as all else.
        v: weights, shape (features,).
        inputs: X, shape (n, features), of full row rank, so that the flow ends with a loss of zero.
        targets: y, shape (n,).

    Raises:
        ValueError: if shapes do not fit together, a value is not finite, or the rows of ``inputs`` are not independent.

    References:
        Kreisler et al. (2023). arXiv:2305.13064. Woodworth et al. (2020). Kernel and rich regimes in overparametrized
        models. arXiv:2002.09277
    """

    def __init__(
        self,
        u: Float[Tensor, " features"],
        v: Float[Tensor, " features"],
        inputs: Float[Tensor, "n features"],
        targets: Float[Tensor, " n"],
    ) -> None:
        self.u, self.v, self.inputs, self.targets = (x.to(torch.float64) for x in (u, v, inputs, targets))
        n, features = inputs.shape if inputs.ndim == 2 else (0, 0)
        if not (u.shape == v.shape == (features,) and targets.shape == (n,) and n > 0):
            raise ValueError(
                "u, v, inputs and targets must have shapes (features,), (features,), (n, features) and (n,), got "
                f"{tuple(u.shape)}, {tuple(v.shape)}, {tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        if not all(x.isfinite().all() for x in (u, v, inputs, targets)):
            raise ValueError("u, v, inputs and targets must be finite")
        if torch.linalg.matrix_rank(self.inputs) < n:
            raise ValueError(
                f"inputs must have independent rows, so that a loss of zero exists, got {n} rows of rank "
                f"{int(torch.linalg.matrix_rank(self.inputs))}"
            )

    def residual(self) -> Float[Tensor, " n"]:
        """Return ``X beta - y``."""
        return self.inputs @ (self.u.square() - self.v.square()) - self.targets

    def loss(self) -> Float[Tensor, ""]:
        """Return ``|X beta - y|^2 / (2 n)``."""
        return 0.5 * self.residual().square().mean()

    def gradient(self) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
        """Return the derivatives of the loss in ``u`` and in ``v``."""
        slope = self._slope()
        return 2.0 * self.u * slope, -2.0 * self.v * slope

    def gd_step(self, lr: float) -> SquaredRegression:
        """Return the model after one step of gradient descent.

        Raises:
            ValueError: if ``lr`` is not positive.
        """
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        of_u, of_v = self.gradient()
        return self._at(self.u - lr * of_u, self.v - lr * of_v)

    def hessian(self) -> Float[Tensor, "2*features 2*features"]:
        """Return the second derivative of the loss in ``u`` and ``v``, in this order."""
        jacobian = 2.0 * torch.cat([self.inputs * self.u, -self.inputs * self.v], dim=1)
        slope = self._slope()
        return jacobian.T @ jacobian / len(self.inputs) + torch.diag(2.0 * torch.cat([slope, -slope]))

    def sharpness(self) -> Float[Tensor, ""]:
        """Return the largest eigenvalue of the Hessian at the weights themselves."""
        return torch.linalg.eigvalsh(self.hessian())[-1]

    def flow_limit(self) -> SquaredRegression:
        """Return the model that gradient flow reaches from here.

        Raises:
            ValueError: if a weight is zero: the flow then cannot change its sign and may stall at a saddle.
        """
        if (self.u == 0).any() or (self.v == 0).any():
            raise ValueError("u and v must have no zero entry: gradient flow stalls at a saddle when a weight is zero")
        lam, limit = torch.zeros_like(self.targets), self
        for _ in range(_MOST_NEWTON_STEPS):
            gap = limit.residual()
            weights = limit.u.square() + limit.v.square()
            step = torch.linalg.solve(4.0 * (self.inputs * weights) @ self.inputs.T, gap)
            # Below the smallest change that lam can hold, Newton's method is done.
            if step.norm() <= 1e-15 * (1.0 + lam.norm()):
                break
            lam, limit = self._descend(lam, step, gap)
        return limit

    def gfs_sharpness(self) -> Float[Tensor, ""]:
        """Return the sharpness of the gradient-flow solution.

        Raises:
            ValueError: as :meth:`flow_limit`.
        """
        limit = self.flow_limit()
        jacobian = 2.0 * torch.cat([self.inputs * limit.u, -self.inputs * limit.v], dim=1)
        # With no residual the Hessian is J^T J / n; J J^T has the same largest eigenvalue and n rows.
        return torch.linalg.eigvalsh(jacobian @ jacobian.T / len(self.inputs))[-1]

    def _descend(self, lam: Tensor, step: Tensor, gap: Tensor) -> tuple[Tensor, SquaredRegression]:
        """Halve Newton's step until the convex function falls as far as Armijo's rule requires."""
        here, slope, fraction = self._potential(lam), -float(gap @ step), 1.0
        while fraction > 1e-12:
            new = lam + fraction * step
            there = self._potential(new)
            if there <= here + 1e-4 * fraction * slope + 1e-15 * abs(here):
                break
            fraction *= 0.5
        rho = self.inputs.T @ new
        return new, self._at(self.u * torch.exp(-2.0 * rho), self.v * torch.exp(2.0 * rho))

    def _potential(self, lam: Tensor) -> float:
        """The convex function of ``lam`` whose gradient is ``y - X beta``."""
        rho = self.inputs.T @ lam
        squares = self.u.square() * torch.exp(-4.0 * rho) + self.v.square() * torch.exp(4.0 * rho)
        return float(0.25 * squares.sum() + self.targets @ lam)

    def _slope(self) -> Float[Tensor, " features"]:
        return self.inputs.T @ self.residual() / len(self.inputs)

    def _at(self, u: Tensor, v: Tensor) -> SquaredRegression:
        other = object.__new__(SquaredRegression)
        other.u, other.v, other.inputs, other.targets = u, v, self.inputs, self.targets
        return other
