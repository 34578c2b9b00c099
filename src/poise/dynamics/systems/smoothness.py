"""Whether a system is differentiable where it is to be linearised, and whether its Jacobian product is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from poise.dynamics.systems.system import System

_DIRECTIONS = 3


@dataclass(frozen=True, slots=True)
class Smoothness:
    """Jacobian products against finite differences, the worst of a few random directions.

    Attributes:
        kink: difference of the one-sided derivatives, as a fraction of their size; tends to 0 where the field is
            smooth.
        mismatch: difference of the Jacobian product and the central difference, as a fraction of their size.
        smooth: whether both are as small as rounding and curvature allow.
    """

    kink: float
    mismatch: float
    smooth: bool


def check_smoothness(system: System, x: Float[Tensor, " n"], generator: torch.Generator | None = None) -> Smoothness:
    """Compare Jacobian products with finite differences from both sides, along three random directions.

    A kink keeps its size when the difference step shrinks; curvature does not.

    Args:
        system: a ``Map`` or ``Flow``.
        x: where, of shape (n,).
        generator: of the directions.
    """
    eps = torch.finfo(x.dtype).eps
    far, near = eps**0.25, eps**0.375
    here = system(x).detach()
    kink = mismatch = 0.0
    smooth = True
    for _ in range(_DIRECTIONS):
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        v = (v / torch.linalg.vector_norm(v)).to(x.device) * max(1.0, float(torch.linalg.vector_norm(x)))
        jump_far, _ = _one_sided(system, x, here, v, far)
        jump, central = _one_sided(system, x, here, v, near)
        product = system.jvp(x, v)
        gap = _relative(product - central, torch.linalg.vector_norm(product) + torch.linalg.vector_norm(central))
        smooth &= not (jump > 0.25 * jump_far and jump > far) and gap <= far
        kink, mismatch = _worse(kink, jump), _worse(mismatch, gap)
    return Smoothness(kink, mismatch, smooth)


def _one_sided(system: System, x: Tensor, here: Tensor, v: Tensor, step: float) -> tuple[float, Tensor]:
    """Return the relative jump of the derivative along ``v``, and its mean of both sides."""
    ahead, behind = (system(x + step * v) - here) / step, (here - system(x - step * v)) / step
    size = torch.linalg.vector_norm(ahead) + torch.linalg.vector_norm(behind)
    return _relative(ahead - behind, size), ((ahead + behind) / 2).detach()


def _worse(a: float, b: float) -> float:
    return b if not b <= a else a  # NaN is worse than any number


def _relative(difference: Tensor, size: Tensor) -> float:
    return 0.0 if size == 0 else float(torch.linalg.vector_norm(difference) / size)
