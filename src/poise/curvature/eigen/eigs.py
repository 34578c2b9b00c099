"""Extreme eigenvalues of an operator: which solver for which operator."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.eigen.block_davidson import block_davidson
from poise.curvature.eigen.dense_eigs import dense_general, dense_symmetric
from poise.curvature.eigen.eigen_result import EigenResult, Which
from poise.curvature.eigen.krylov_schur import krylov_schur
from poise.curvature.eigen.lanczos import lanczos
from poise.curvature.eigen.limits import product_limit
from poise.curvature.operators.linear_operator import LinearOperator

EigenMethod = Literal["lanczos", "block", "arnoldi"]

DENSE = 40
"""Up to this many columns the matrix is written out."""


def eigs(
    op: LinearOperator,
    k: int = 1,
    which: Which = "LA",
    tol: float = 1e-3,
    v0: Float[Tensor, " n"] | Float[Tensor, "n p"] | None = None,
    method: EigenMethod = "lanczos",
    generator: torch.Generator | None = None,
    max_matvecs: int | None = None,
) -> EigenResult:
    """Return k extreme eigenvalues with bounds on their errors, outermost first.

    Operators of up to 40 columns are written out and solved exactly, if ``max_matvecs`` allows a product per column.

    Args:
        op: square; symmetric unless ``method="arnoldi"``.
        k: number of eigenvalues.
        which: ``"LA"`` largest (real part), ``"SA"`` smallest (real part), ``"LM"`` largest magnitude, ``"BE"`` from
            both ends, upper ones first (symmetric operators).
        tol: relative tolerance: 1e-3 to follow a value over training, 1e-6 for a report.
        v0: a warm start: one vector; for ``method="block"`` also several, as columns.
        method: ``"lanczos"`` (:func:`poise.curvature.lanczos`), ``"block"`` (:func:`poise.curvature.block_davidson`)
            for multiple eigenvalues and starts from several vectors, ``"arnoldi"``
            (:func:`poise.curvature.krylov_schur`) for operators that are not symmetric.
        generator: source of random starts; torch's global one by default.
        max_matvecs: most products to take, never exceeded; ``converged`` then marks what is reliable, and there are
            fewer than k values if it is below k.

    Raises:
        ValueError: if ``k`` is not in [1, n], the operator is not square or, for ``"lanczos"`` and ``"block"``, not
            symmetric, a product is not finite, or an argument is out of range.
    """
    _check(op, k, which, tol, v0, method, max_matvecs)
    if op.shape[0] <= DENSE and op.shape[0] <= product_limit(max_matvecs, op.shape[0]):
        return dense_general(op, k, which) if method == "arnoldi" else dense_symmetric(op, k, which)
    if method == "block":
        columns = None if v0 is None else v0.reshape(op.shape[0], -1)
        return block_davidson(op, k, which, tol, columns, generator, max_matvecs)
    solver = lanczos if method == "lanczos" else krylov_schur
    return solver(op, k, which, tol, v0, generator, max_matvecs)


def _check(
    op: LinearOperator,
    k: int,
    which: str,
    tol: float,
    v0: Tensor | None,
    method: str,
    max_matvecs: int | None,
) -> None:
    rows, columns = op.shape
    if rows != columns:
        raise ValueError(f"op must be square, got shape {op.shape}")
    if not 1 <= k <= rows:
        raise ValueError(f"k must lie in [1, {rows}], the size of op; got {k}")
    for name, value, known in (("which", which, get_args(Which)), ("method", method, get_args(EigenMethod))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    if method == "arnoldi" and which == "BE":
        raise ValueError('which="BE" needs a symmetric operator; give "LM", "LA" or "SA"')
    if method != "arnoldi" and not op.symmetric:
        raise ValueError(f'op must be symmetric for method={method!r}, {op!r} is not; use method="arnoldi"')
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol must lie in (0, 1), got {tol}")
    product_limit(max_matvecs, rows)
    if v0 is not None:
        _check_start(v0, rows, method)


def _check_start(v0: Tensor, n: int, method: str) -> None:
    if v0.shape[0] != n or v0.ndim > (2 if method == "block" else 1):
        raise ValueError(f"v0 must have shape ({n},){' or (n, p)' * (method == 'block')}, got {tuple(v0.shape)}")
    if not v0.isfinite().all() or not v0.any():
        raise ValueError("v0 must be finite and not zero")
