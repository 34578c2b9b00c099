"""Scalar network: one weight per layer, one example; its gradient flow ends at a point known in closed form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

STABLE_SET_LIMIT = 2.0 * math.sqrt(2.0)
"""Largest product of learning rate and sharpness of the gradient-flow solution for which it provably never rises."""

_MOST_NEWTON_STEPS = 200


class ScalarNetwork:
    """Product of weights fitted to 1 by the loss ``(p - 1)^2 / 2`` with ``p = w_1 w_2 ... w_depth``.

    Gradient flow keeps every ``w_i^2 - w_j^2``, so the minimum it reaches and the sharpness there need no integration.

    Args:
        w: weights of the layers, shape (..., depth); leading dimensions are independent networks. Computed in float64.

    Raises:
        ValueError: if ``w`` has no layer, or a weight is not finite.

    References:
        Kreisler, Shpigel Nacson, Soudry and Carmon (2023). Gradient Descent Monotonically Decreases the Sharpness of
        Gradient Flow Solutions in Scalar Networks and Beyond. arXiv:2305.13064
    """

    def __init__(self, w: Float[Tensor, "... depth"]) -> None:
        self.w = torch.as_tensor(w, dtype=torch.float64)
        if self.w.ndim == 0 or self.w.shape[-1] == 0:
            raise ValueError(f"w must have shape (..., depth) with depth of at least 1, got {tuple(self.w.shape)}")
        if not self.w.isfinite().all():
            raise ValueError("w must be finite, got NaN or infinite weights")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.w.shape[-1]

    def product(self) -> Float[Tensor, "..."]:
        """Return the network's output ``p``."""
        return _product(self.w)

    def loss(self) -> Float[Tensor, "..."]:
        """Return ``(p - 1)^2 / 2``."""
        return 0.5 * (self.product() - 1.0).square()

    def gradient(self) -> Float[Tensor, "... depth"]:
        """Return ``(p - 1) p / w_i``; a weight of zero is no exception."""
        return (self.product() - 1.0)[..., None] * self._product_without_one()

    def gd_step(self, lr: float) -> ScalarNetwork:
        """Return the network after one step of gradient descent.

        Raises:
            ValueError: if ``lr`` is not positive.
        """
        _require_positive(lr)
        return ScalarNetwork(self.w - lr * self.gradient())

    def hessian(self) -> Float[Tensor, "... depth depth"]:
        """Return the second derivative of the loss in the weights."""
        ones = self._product_without_one()
        return ones[..., :, None] * ones[..., None, :] + (self.product() - 1.0)[..., None, None] * self._mixed()

    def sharpness(self) -> Float[Tensor, "..."]:
        """Return the largest eigenvalue of the Hessian at the weights themselves."""
        return torch.linalg.eigvalsh(self.hessian())[..., -1]

    def flow_limit(self) -> Float[Tensor, "... depth"]:
        """Return the minimum that gradient flow reaches from here.

        Raises:
            ValueError: if a weight is zero or the product is negative: the flow then ends at a saddle or has no closed
                form.
        """
        return self._flow_limit_squared().sqrt() * self.w.sign()

    def gfs_sharpness(self) -> Float[Tensor, "..."]:
        """Return the sharpness of the gradient-flow solution, ``sum_i 1 / x_i^2`` at the limit ``x``.

        Raises:
            ValueError: as :meth:`flow_limit`.
        """
        return self._flow_limit_squared().reciprocal().sum(-1)

    def in_stable_set(self, lr: float) -> Bool[Tensor, "..."]:
        """Say where the theorem holds: signs kept by the step, lr * GFS sharpness <= 2 sqrt(2), lr * depth < 2.

        Below ``lr * depth = 2`` some minimum is stable; above it gradient descent cannot converge. The paper's further
        condition on products of the largest weights is not checked.

        Raises:
            ValueError: if ``lr`` is not positive, and as :meth:`flow_limit`.
        """
        kept = (self.gd_step(lr).w * self.w > 0).all(-1)
        return kept & (lr * self.gfs_sharpness() <= STABLE_SET_LIMIT) & (lr * self.depth < 2.0)

    def imbalance_factors(self, lr: float) -> Float[Tensor, "... depth depth"]:
        """Return what one step multiplies ``w_i^2 - w_j^2`` by: ``1 - lr^2 (1 - p)^2 p^2 / (w_i w_j)^2``.

        If all are at most 1 in size off the diagonal, no imbalance grows, so the GFS sharpness does not rise: a
        certificate that needs no root. Equal weights stay equal, whatever their factor.

        Raises:
            ValueError: if ``lr`` is not positive.
        """
        _require_positive(lr)
        return 1.0 - (lr * (1.0 - self.product()))[..., None, None].square() * self._mixed().square()

    def _flow_limit_squared(self) -> Float[Tensor, "... depth"]:
        """Solve ``sum_i log(w_i^2 + c) = 0`` in the unknown ``u = log(min w^2 + c)``.

        In ``u`` the sum is convex and rises with a slope between 1 and the depth, so that Newton's method from u = 0,
        which lies above the root, descends to it without a bracket; and no ``w^2 + c`` cancels.
        """
        size = self._require_flow()
        smallest = size.min(-1, keepdim=True).values
        above = (size - smallest) * (size + smallest)
        u = torch.zeros_like(smallest)
        for _ in range(_MOST_NEWTON_STEPS):
            squared = u.exp() + above
            step = squared.log().sum(-1, keepdim=True) / (u.exp() / squared).sum(-1, keepdim=True)
            u = u - step
            if (step.abs() <= 4e-16 * (1.0 + u.abs())).all():
                break
        return u.exp() + above

    def _require_flow(self) -> Float[Tensor, "... depth"]:
        if (self.w == 0).any():
            raise ValueError("w must have no zero entry: gradient flow stalls at a saddle when a weight is zero")
        if (self.w.sign().prod(-1) < 0).any():
            raise ValueError(
                "w must have a positive product for the closed form, got a negative one; integrate the flow with "
                "poise.dynamics.gradient_flow_limit instead"
            )
        return self.w.abs()

    def _product_without_one(self) -> Float[Tensor, "... depth"]:
        return _product(self.w[..., None, :].where(~self._eye(), 1.0))

    def _mixed(self) -> Float[Tensor, "... depth depth"]:
        """Second derivatives of the product: what is left of it without ``w_i`` and ``w_j``, zero on the diagonal."""
        keep = ~(self._eye()[:, None, :] | self._eye()[None, :, :])
        rest = _product(self.w[..., None, None, :].where(keep, 1.0))
        return rest.masked_fill(self._eye(), 0.0)

    def _eye(self) -> Bool[Tensor, "depth depth"]:
        return torch.eye(self.depth, dtype=torch.bool, device=self.w.device)


def _product(factors: Float[Tensor, "... depth"]) -> Float[Tensor, "..."]:
    """Return the product over the last dimension; only where the whole leaves the range of floats does it overflow.

    Factors are multiplied in pairs, and powers of two are taken out after each round: they are exact.
    """
    mantissa, exponent = torch.frexp(factors)
    while mantissa.shape[-1] > 1:
        if mantissa.shape[-1] % 2:
            mantissa, exponent = (F.pad(x, (0, 1), value=v) for x, v in ((mantissa, 1.0), (exponent, 0)))
        mantissa, more = torch.frexp(mantissa[..., ::2] * mantissa[..., 1::2])
        exponent = exponent[..., ::2] + exponent[..., 1::2] + more
    power = exponent[..., 0].clamp(-2200, 2200).double()
    half = (power / 2).floor()  # 2 ** 1024 is no float, but may be a factor of one
    return mantissa[..., 0] * torch.pow(2.0, half) * torch.pow(2.0, power - half)


def _require_positive(lr: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
