"""Eigenvalues of an operator small enough to be written out."""

from __future__ import annotations

import numpy as np
import torch

from poise.curvature.eigen.eigen_result import EigenResult, Which
from poise.curvature.eigen.krylov_schur import order_complex
from poise.curvature.eigen.orthogonal import ASYMMETRY, AsymmetryError
from poise.curvature.eigen.ritz import rounding, select
from poise.curvature.operators.linear_operator import LinearOperator


def dense_symmetric(op: LinearOperator, k: int, which: Which) -> EigenResult:
    """Return k eigenvalues of a symmetric operator from its matrix, outermost first; takes n products.

    Args:
        op: symmetric.
        k: number of eigenvalues.
        which: which end, as in :func:`poise.curvature.lanczos`.

    Raises:
        ValueError: if the matrix is not symmetric or not finite.
    """
    matrix = _matrix(op)
    difference = float(np.abs(matrix - matrix.T).max()) / max(float(np.abs(matrix).max()), np.finfo(float).tiny)
    if difference > ASYMMETRY:
        raise AsymmetryError(difference)
    theta, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    chosen = select(theta, k, which)
    residuals = np.linalg.norm(matrix @ vectors[:, chosen] - vectors[:, chosen] * theta[chosen], axis=0)
    bounds = residuals + rounding(theta, op.dtype)
    return _result(op, theta[chosen], vectors[:, chosen], residuals, bounds)


def dense_general(op: LinearOperator, k: int, which: Which) -> EigenResult:
    """Return k eigenvalues of any square operator from its matrix; takes n products.

    Args:
        op: square.
        k: number of eigenvalues.
        which: which ones, as in :func:`poise.curvature.krylov_schur`.

    Raises:
        ValueError: if the matrix is not finite.
    """
    matrix = _matrix(op)
    theta, vectors = np.linalg.eig(matrix)
    chosen = order_complex(theta, which)[:k]
    theta, vectors = theta[chosen].astype(complex), vectors[:, chosen].astype(complex)
    residuals = np.linalg.norm(matrix @ vectors - vectors * theta, axis=0)
    return _result(op, theta, vectors, residuals, residuals + rounding(theta, op.dtype))


def _matrix(op: LinearOperator) -> np.ndarray:
    matrix = op.to_dense().double().cpu().numpy()
    if not np.isfinite(matrix).all():
        raise ValueError("a product with op is not finite")
    return matrix


def _result(
    op: LinearOperator, values: np.ndarray, vectors: np.ndarray, residuals: np.ndarray, bounds: np.ndarray
) -> EigenResult:
    dtype = op.dtype.to_complex() if np.iscomplexobj(vectors) else op.dtype
    return EigenResult(
        torch.from_numpy(values.copy()),
        torch.from_numpy(vectors.copy()).to(op.device, dtype),
        torch.from_numpy(bounds),
        torch.from_numpy(residuals),
        op.shape[1],
        torch.ones(len(values), dtype=torch.bool),
    )
