r"""How much a block amplifies a signal: the size of its Jacobian, from products with random vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

PROBES = 4
"""Random vectors for each block. Positions, features and examples average too: most blocks need no more."""


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor at one point of a computation; overwriting it later does not change the point.

    Attributes:
        edge: of autograd's graph.
        shape: of the tensor.
        dtype: of the tensor.
        device: of the tensor.
    """

    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor | None) -> Point | None:
        """Return the point that a tensor is, ``None`` if no gradient can reach it."""
        if tensor is None or not tensor.requires_grad:
            return None
        return cls(get_gradient_edge(tensor), tensor.shape, tensor.dtype, tensor.device)


def jacobian_gain(start: Point, end: Point, seed: int, probes: int = PROBES) -> float | None:
    r"""Return the root mean square gain of a Jacobian, without forming it.

    With :math:`J = \partial\,\mathrm{end} / \partial\,\mathrm{start}`, n entries at the end and random signs u,

    .. math:: \frac{\|J\|_F}{\sqrt n} = \sqrt{\frac{\mathbb{E}\,\|J^\top u\|^2}{n}} .

    A gradient of random direction grows by this factor in the backward pass. Where start and end have equally many
    entries it is the root mean square of the singular values as well, and the factor by which a small perturbation of
    random direction grows in the forward pass. Of a batch it is the root mean square over the examples.

    Args:
        start: where the block begins.
        end: where it ends; its graph is kept.
        seed: of the signs.
        probes: number of random vectors, at least 1.

    Returns:
        The gain, exact for Jacobians with orthogonal rows; ``None`` if the end does not depend on the start.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines", 1990.
        Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry",
        2017, arXiv:1711.04735.
    """
    generator = torch.Generator(end.device).manual_seed(seed)
    total = 0.0
    for _ in range(probes):
        signs = torch.randint(2, end.shape, generator=generator, device=end.device).mul_(2).sub_(1).to(end.dtype)
        (back,) = torch.autograd.grad([end.edge], [start.edge], [signs], retain_graph=True, allow_unused=True)
        if back is None:
            return None
        total += float(torch.linalg.vector_norm(back, dtype=torch.float64)) ** 2
    return math.sqrt(total / (probes * end.shape.numel()))
