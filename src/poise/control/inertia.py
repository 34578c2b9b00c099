"""Inertial parameters of a rigid body, and whether a distribution of mass has them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def pseudo_inertia(parameters: Any) -> Float64[Tensor, "*batch 4 4"]:
    r"""Return the pseudo-inertia of a body, which is positive definite exactly if a density of mass has it.

    It is [[S, h], [h', m]] with the first moments h = m c and :math:`S = \tfrac12 \mathrm{tr}(I) E - I`.

    Args:
        parameters: (m, m cx, m cy, m cz, Ixx, Ixy, Iyy, Ixz, Iyz, Izz) of shape (..., 10), the inertia about the origin
            of the link's frame.

    Raises:
        ValueError: if the last dimension is not 10, or an entry is not finite.

    References:
        Wensing, Kim and Slotine (2017). Linear matrix inequalities for physically consistent inertial parameters.
    """
    p = torch.as_tensor(parameters).to(torch.float64)
    if not p.ndim or p.shape[-1] != 10:
        raise ValueError(f"parameters must have shape (..., 10), got {tuple(p.shape)}")
    if not bool(torch.isfinite(p).all()):
        raise ValueError("parameters must be finite, got NaN or infinite entries")
    m, hx, hy, hz, ixx, ixy, iyy, ixz, iyz, izz = p.unbind(-1)
    half = (ixx + iyy + izz) / 2
    rows = [
        [half - ixx, -ixy, -ixz, hx],
        [-ixy, half - iyy, -iyz, hy],
        [-ixz, -iyz, half - izz, hz],
        [hx, hy, hz, m],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def inertial_parameters(pseudo: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch 10"]:
    """Return the ten parameters of a pseudo-inertia; the inverse of :func:`pseudo_inertia`.

    Raises:
        ValueError: if the shape is not (..., 4, 4).
    """
    if pseudo.shape[-2:] != (4, 4):
        raise ValueError(f"pseudo must have shape (..., 4, 4), got {tuple(pseudo.shape)}")
    S, h, m = pseudo[..., :3, :3], pseudo[..., :3, 3], pseudo[..., 3, 3]
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.stack(
        [
            m,
            *h.unbind(-1),
            trace - S[..., 0, 0],
            -S[..., 0, 1],
            trace - S[..., 1, 1],
            -S[..., 0, 2],
            -S[..., 1, 2],
            trace - S[..., 2, 2],
        ],
        -1,
    )


def is_physically_consistent(parameters: Any, tolerance: float = 0.0) -> Bool[Tensor, "*batch"]:
    """Return whether a distribution of mass has these parameters: positive mass, and moments that fit together.

    In particular no principal moment about the centre of mass is larger than the sum of the two others.

    Args:
        parameters: of shape (..., 10), in the order of :func:`pseudo_inertia`.
        tolerance: how far below zero the smallest eigenvalue of the pseudo-inertia may be, as a fraction of the
            largest.

    Example:
        >>> [bool(is_physically_consistent([1.0, 0, 0, 0, 1, 0, 1, 0, 0, largest])) for largest in (1.9, 3.0)]
        [True, False]
    """
    values = torch.linalg.eigvalsh(pseudo_inertia(parameters))
    return values[..., 0] > -tolerance * values[..., -1].abs()


def from_log_cholesky(theta: Any) -> Float64[Tensor, "*batch 4 4"]:
    r"""Return the pseudo-inertia of unconstrained parameters; every one of them is physically consistent.

    It is U U' with the upper triangular
    :math:`U = e^\alpha [[e^{d_1}, s_{12}, s_{13}, t_1], [0, e^{d_2}, s_{23}, t_2], [0, 0, e^{d_3}, t_3],
    [0, 0, 0, 1]]`, so that the mass is :math:`e^{2 \alpha}` and (t1, t2, t3) the centre of mass.

    Args:
        theta: (alpha, d1, d2, d3, s12, s23, s13, t1, t2, t3), of shape (..., 10).

    Raises:
        ValueError: if the last dimension is not 10.

    References:
        Rucker and Wensing (2022). Smooth parameterization of rigid-body inertia.
    """
    theta = torch.as_tensor(theta).to(torch.float64)
    if not theta.ndim or theta.shape[-1] != 10:
        raise ValueError(f"theta must have shape (..., 10), got {tuple(theta.shape)}")
    alpha, d1, d2, d3, s12, s23, s13, t1, t2, t3 = theta.unbind(-1)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    rows = [[d1.exp(), s12, s13, t1], [zero, d2.exp(), s23, t2], [zero, zero, d3.exp(), t3], [zero, zero, zero, one]]
    U = alpha.exp()[..., None, None] * torch.stack([torch.stack(row, -1) for row in rows], -2)
    return U @ U.mT


def to_log_cholesky(pseudo: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch 10"]:
    """Return the unconstrained parameters of a pseudo-inertia; the inverse of :func:`from_log_cholesky`.

    Raises:
        ValueError: if it is not positive definite, so that no body has it.
    """
    factor, info = torch.linalg.cholesky_ex(pseudo.flip((-2, -1)))
    if bool((info > 0).any()):
        raise ValueError(
            "pseudo must be positive definite, as that of every body is; got a smallest eigenvalue of "
            f"{float(torch.linalg.eigvalsh(pseudo)[..., 0].min()):.4g}"
        )
    U = factor.flip((-2, -1))
    scale = U[..., 3, 3]
    V = U / scale[..., None, None]
    diagonal = [V[..., i, i].log() for i in range(3)]
    off = [V[..., 0, 1], V[..., 1, 2], V[..., 0, 2], V[..., 0, 3], V[..., 1, 3], V[..., 2, 3]]
    return torch.stack([scale.log(), *diagonal, *off], -1)
