"""The solution of a batch of Riccati equations from the stable invariant subspaces of their Hamiltonian matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex128, Float64
from torch import Tensor

_SINGULAR = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class SubspaceSolution:
    """A solution P and the eigenvectors of the closed loop that it makes.

    Attributes:
        P: of shape (..., n, n), symmetric.
        vectors: eigenvectors of the closed loop as columns, of shape (..., n, n).
        found: whether there were n stable eigenvalues and their eigenvectors were independent, of shape (...).
    """

    P: Float64[Tensor, "*batch n n"]
    vectors: Complex128[Tensor, "*batch n n"]
    found: Tensor


def balance(Q: Float64[Tensor, "*batch n n"], G: Float64[Tensor, "*batch n n"]) -> Float64[Tensor, "*batch 1 1"]:
    """Return the unit of P in which the blocks Q and G of a Hamiltonian matrix are of one size; 1 if one is zero."""
    sizes = torch.linalg.matrix_norm(Q), torch.linalg.matrix_norm(G)
    unit = (sizes[0] / sizes[1]).sqrt()
    return torch.where((sizes[0] > 0) & (sizes[1] > 0), unit, torch.ones_like(unit))[..., None, None]


def stable_subspace_solution(hamiltonian: Float64[Tensor, "*batch two_n two_n"]) -> SubspaceSolution:
    """Return P of which [I; P] spans the invariant subspace of the eigenvalues with negative real part.

    Args:
        hamiltonian: matrices whose eigenvalues lie symmetrically to the imaginary axis, of shape (..., 2n, 2n).

    References:
        Potter (1966). Matrix quadratic solutions; Laub (1979). A Schur method for solving algebraic Riccati equations.
    """
    n = hamiltonian.shape[-1] // 2
    values, vectors = torch.linalg.eig(hamiltonian)
    order = values.real.argsort(dim=-1)[..., :n]
    stable = torch.gather(values.real, -1, order)[..., -1] < 0
    basis = torch.gather(vectors, -1, order[..., None, :].expand(*order.shape[:-1], 2 * n, n))
    top, bottom = basis[..., :n, :], basis[..., n:, :]
    factors, pivots, info = torch.linalg.lu_factor_ex(top.mT)
    diagonal = factors.diagonal(dim1=-2, dim2=-1).abs()
    independent = (info == 0) & (diagonal.amin(-1) > _SINGULAR * diagonal.amax(-1))
    P = torch.linalg.lu_solve(factors, pivots, bottom.mT).mT.real
    P = (P + P.mT) / 2
    found = stable & independent & torch.isfinite(P).flatten(-2).all(-1)
    return SubspaceSolution(P, top, found)
