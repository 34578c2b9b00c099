"""Scale-distribution decoupling: a linear map whose output is normalised, so that its scale is one learned vector."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SDDLinear(nn.Module):
    r"""Linear map with the scale of its output decoupled from its weights.

    .. math:: y = \alpha \odot \frac{Vx}{\mathrm{rms}(Vx)}, \qquad
        \mathrm{rms}(z) = \sqrt{\tfrac1n \sum_i z_i^2 + \epsilon}

    The output does not depend on the scale of V, nor (up to ``eps``) on that of x; the gradient of V is orthogonal to
    V and inversely proportional to its norm. Weight decay on V therefore changes the effective step size only; on
    ``alpha`` it would shrink the function, so exclude ``alpha`` from it. A zero input gives a zero output, through
    which a gradient passes multiplied by ``1 / sqrt(eps)``.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        alpha_init: initial value of ``alpha``; ``1 / sqrt(n_layers)`` where a residual branch ends.
        std: of the initial normal weights, ``1 / sqrt(2.5 * in_features)`` by default.
        eps: added to the mean square, at least 1e-6 is recommended.
        groups: normalise so many equal parts of the output on their own; 3 for a fused map of queries, keys and values.
        device: where parameters live.
        dtype: dtype of the parameters.

    Attributes:
        weight: V, of shape (out_features, in_features).
        alpha: of shape (out_features,).

    Raises:
        ValueError: if an argument is out of range, or ``groups`` does not divide ``out_features``.

    References:
        Wang et al., "Scale-Distribution Decoupling: Enabling Stable and Effective Training of Large Language Models",
        2025, arXiv:2502.15499.

    Example:
        >>> SDDLinear(16, 48, groups=3)(torch.randn(2, 16)).shape
        torch.Size([2, 48])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        alpha_init: float = 1.0,
        std: float | None = None,
        eps: float = 1e-6,
        groups: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features and out_features must be at least 1, got {in_features} and {out_features}")
        if groups < 1 or out_features % groups:
            raise ValueError(f"groups must divide out_features={out_features}, got {groups!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps!r}")
        if not math.isfinite(alpha_init):
            raise ValueError(f"alpha_init must be finite, got {alpha_init!r}")
        self.std = 1 / math.sqrt(2.5 * in_features) if std is None else std
        if not self.std > 0:
            raise ValueError(f"std must be positive, got {std!r}")
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.alpha_init, self.eps = alpha_init, eps
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.alpha = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise V again and set ``alpha``."""
        nn.init.normal_(self.weight, std=self.std)
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the scaled, normalised map, in the dtype of the product."""
        z = F.linear(x, self.weight)
        grouped = z.unflatten(-1, (self.groups, -1))  # squares may exceed float16: the norm is computed in float32
        precise = grouped.float() if grouped.dtype in (torch.float16, torch.bfloat16) else grouped
        y = F.rms_norm(precise, precise.shape[-1:], eps=self.eps).flatten(-2)
        return (y * self.alpha).to(z.dtype)

    @classmethod
    def from_linear(cls, linear: nn.Linear, calibration: Tensor | None = None, **settings: Any) -> Self:
        """Return a layer with the weights of a linear one.

        With calibration inputs ``alpha`` is the mean root mean square of the products, and outputs agree as far as
        that is the same for all inputs. Without, ``alpha`` is ``alpha_init``: a layer to train from the start.

        Args:
            linear: without bias.
            calibration: inputs of shape (..., in_features).
            settings: further arguments of the class.

        Raises:
            ValueError: if the linear layer has a bias.
        """
        if linear.bias is not None:
            raise ValueError("linear must have no bias (the decoupled map has none), got one; set linear.bias to None")
        factory = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        made = cls(linear.in_features, linear.out_features, **factory, **settings)
        with torch.no_grad():
            made.weight.copy_(linear.weight)
            if calibration is not None:
                scale = made._rms(calibration).flatten(0, -2).mean(0)
                made.alpha.copy_(scale.repeat_interleave(made.out_features // made.groups))
        return made.train(linear.training)

    @torch.no_grad()
    def to_linear(self, calibration: Float[Tensor, "*batch in"]) -> tuple[nn.Linear, float]:
        """Return the linear layer nearest on the calibration inputs, and its relative error there.

        Each group's divisor becomes the constant that fits best in least squares.

        Args:
            calibration: inputs the map is to be right for; it depends on them.

        Raises:
            ValueError: if there are no inputs.
        """
        if calibration is None or calibration.numel() == 0:
            raise ValueError("calibration must hold inputs: the map depends on its input, so no linear map equals it")
        width = self.out_features // self.groups
        target = self(calibration).reshape(-1, self.groups, width)
        raw = (F.linear(calibration, self.weight) * self.alpha).reshape(-1, self.groups, width)
        factor = (target * raw).sum((0, 2)) / raw.square().sum((0, 2)).clamp_min(torch.finfo(raw.dtype).tiny)
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device=raw.device, dtype=self.weight.dtype)
        linear.weight.copy_((self.alpha * factor.repeat_interleave(width))[:, None] * self.weight)
        error = torch.linalg.vector_norm(raw * factor[:, None] - target) / torch.linalg.vector_norm(target)
        return linear, error.item()

    def _rms(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.weight).unflatten(-1, (self.groups, -1))
        return (z.square().mean(-1) + self.eps).sqrt()

    def extra_repr(self) -> str:
        """Show the settings in the module's ``repr``."""
        return f"{self.in_features}, {self.out_features}, groups={self.groups}, eps={self.eps}"
