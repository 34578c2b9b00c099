"""Residual branches multiplied by factors whose squares have a bounded sum: stable at any depth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Kind = Literal["uniform", "decreasing", "standard"]


def residual_scales(n_branches: int, kind: Kind | Callable[[int, int], float] = "uniform") -> Float[Tensor, " branch"]:
    r"""Return the factor of every residual branch.

    ``"uniform"`` is :math:`1/\sqrt L`, ``"decreasing"`` is :math:`1/(\sqrt l \log(l+1))`, ``"standard"`` is 1. The
    variance of the stream grows at most by :math:`\exp(\tfrac12 \sigma_w^2 \sum_l \lambda_l^2)`.

    Args:
        n_branches: L, the number of branches (not of layers in them).
        kind: a name, or a function of (l, L) with l = 1, ..., L.

    Returns:
        The factors in float64.

    Raises:
        ValueError: if ``n_branches`` is below 1, ``kind`` is unknown, or a factor is not finite.

    References:
        Hayou et al., "Stable ResNet", AISTATS 2021, arXiv:2010.12859.

    Example:
        >>> float(residual_scales(16).square().sum())
        1.0
    """
    if n_branches < 1:
        raise ValueError(f"n_branches must be at least 1, got {n_branches!r}")
    depth = torch.arange(1, n_branches + 1, dtype=torch.float64, device="cpu")  # numbers, also where layers are meta
    if callable(kind):
        scales = depth.new_tensor([float(kind(branch, n_branches)) for branch in range(1, n_branches + 1)])
        total = scales.square().sum().item()
        if total > 4:  # the decreasing sequence, whose sum converges slowly, stays below 3.4
            warnings.warn(f"the squares of the custom scales sum to {total:.4g}: growth may be large", stacklevel=2)
    elif kind == "uniform":
        scales = torch.full_like(depth, 1 / math.sqrt(n_branches))
    elif kind == "decreasing":
        scales = 1 / (depth.sqrt() * (depth + 1).log())
    elif kind == "standard":
        scales = torch.ones_like(depth)
    else:
        raise ValueError(f"kind must be 'uniform', 'decreasing', 'standard' or a function, got {kind!r}")
    if not scales.isfinite().all():
        raise ValueError(f"kind must give finite factors, got {scales.tolist()}")
    return scales


class ScaledResidual(nn.Module):
    r"""Residual block with a factor on its branch, :math:`y = \mathrm{shortcut}(x) + \lambda\, \mathrm{branch}(x)`.

    The factor is fixed, a buffer; ``learnable=True`` with a scale of 0 is SkipInit (ReZero), with a small vector
    LayerScale. It acts on the branch's output, after any batch normalisation, which would cancel it.

    Args:
        branch: maps a tensor to one of the shape that the shortcut has.
        scale: the factor, a number or a tensor that broadcasts with the branch's output.
        learnable: make it a parameter.
        shortcut: the identity by default.

    Raises:
        ValueError: if ``scale`` is not finite.

    References:
        Hayou et al., 2021, arXiv:2010.12859. De and Smith, 2020, arXiv:2002.10444. Touvron et al., 2021,
        arXiv:2103.17239.

    Example:
        >>> block = ScaledResidual(nn.Linear(8, 8), scale=0.25)
        >>> block(torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    scale: Tensor

    def __init__(
        self, branch: nn.Module, scale: float | Tensor, learnable: bool = False, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        kept = torch.as_tensor(scale, device=None if isinstance(scale, Tensor) else "cpu").detach().clone()
        if not kept.is_meta and not kept.isfinite().all():
            raise ValueError(f"scale must be finite, got {scale!r}")
        self.branch, self.shortcut = branch, nn.Identity() if shortcut is None else shortcut
        value = torch.empty(
            kept.shape, dtype=torch.get_default_dtype(), device=scale.device if isinstance(scale, Tensor) else None
        )
        self._initial = kept
        if learnable:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give the factor its first value; after ``to_empty`` it has none."""
        self.scale.copy_(self._initial)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        branch, shortcut = self.branch(x), self.shortcut(x)
        return (shortcut + self.scale * branch).to(torch.promote_types(shortcut.dtype, branch.dtype))
