"""Linear models along a trajectory, estimated from perturbed roll-outs."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

_CUT = 1e-6  # singular values below this fraction of the largest hold no information


def local_models(
    dX: Float64[Tensor, "runs times n"], dU: Float64[Tensor, "runs K m"]
) -> tuple[Float64[Tensor, "K n n"], Float64[Tensor, "K n m"]]:
    """Return the Jacobians A_k and B_k of each step, by regression of the next deviation on state and input.

    Directions of the state that no run reached at a step have zero derivative there.

    Args:
        dX: deviations of the states from the nominal trajectory, of shape (runs, K + 1, n).
        dU: deviations of the applied inputs, feedback included, of shape (runs, K, m).

    Raises:
        ValueError: if shapes do not fit, there are fewer than n + m runs, or an entry is not finite.

    References:
        Pfrommer et al. (2023), arXiv:2305.09619.
    """
    runs, K, m = dU.shape
    n = dX.shape[-1]
    if dX.shape != (runs, K + 1, n):
        raise ValueError(f"dX must have shape ({runs}, {K + 1}, n), got {tuple(dX.shape)}")
    if runs < n + m:
        raise ValueError(f"runs must be at least n + m = {n + m}, got {runs}")
    _check_finite(dX, dU)
    inputs = torch.cat([dX[:, :-1], dU], -1).transpose(0, 1)
    outputs = dX[:, 1:].transpose(0, 1)
    solution = torch.linalg.pinv(inputs, rtol=_CUT) @ outputs
    return solution[:, :n].mT, solution[:, n:].mT


def markov_operators(
    dX: Float64[Tensor, "runs times n"], W: Float64[Tensor, "runs K m"]
) -> Float64[Tensor, "times K n m"]:
    """Return the derivatives of each state with respect to each earlier perturbation, through the closed loop.

    Args:
        dX: deviations of the states, of shape (runs, K + 1, n).
        W: perturbations added to the inputs, of shape (runs, K, m).

    Returns:
        Psi of shape (K + 1, K, n, m), zero where the state is not later than the perturbation.

    Raises:
        ValueError: if shapes do not fit, there are fewer than K m runs, or an entry is not finite.

    References:
        Pfrommer et al. (2023), arXiv:2305.09619, estimation of Markov operators (least squares instead of moments).
    """
    runs, K, m = W.shape
    if dX.shape[:2] != (runs, K + 1):
        raise ValueError(f"dX must have shape ({runs}, {K + 1}, n), got {tuple(dX.shape)}")
    if runs < K * m:
        raise ValueError(f"runs must be at least K m = {K * m}, got {runs}")
    _check_finite(dX, W)
    n = dX.shape[-1]
    psi = dX.new_zeros(K + 1, K, n, m)
    for j in range(1, K + 1):
        solution = torch.linalg.pinv(W[:, :j].flatten(1), rtol=_CUT) @ dX[:, j]
        psi[j, :j] = solution.unflatten(0, (j, m)).permute(0, 2, 1)
    return psi


def closed_loop_markov(
    A: Float64[Tensor, "K n n"], B: Float64[Tensor, "K n m"], gains: Float64[Tensor, "K m n"]
) -> Float64[Tensor, "times K n m"]:
    """Return the Markov operators of linear models under a feedback u = K x: products of the closed-loop steps."""
    K, n, m = B.shape
    psi = B.new_zeros(K + 1, K, n, m)
    for j in range(K):
        psi[j + 1, :j] = (A[j] + B[j] @ gains[j]) @ psi[j, :j]
        psi[j + 1, j] = B[j]
    return psi


def explosion(psi: Float64[Tensor, "times K n m"]) -> float:
    """Return the largest spectral norm of the Markov operators: how much a perturbation of an input can grow."""
    return float(torch.linalg.matrix_norm(psi, 2).max())


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ValueError("deviations must be finite; a perturbed roll-out diverged: lower sigma")
