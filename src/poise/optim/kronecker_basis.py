"""Eigenbases of a gradient's Gram matrices, one for each axis: where Shampoo and SOAP precondition.

Every function takes one tensor with its matrices, or a stack of equal ones (first dimension ``batch``, written
``*batch``), so that equal layers need one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NullSpace = Literal["lift", "reference"]

_NULL = 1e-8
"""Share of the largest eigenvalue below which the first eigenvectors hang on rounding."""

_PANEL = 128
"""Rows of a Gram matrix that one product computes; only what is left of the panel's end is computed at all."""


def accumulate_gram(
    gram: Float[Tensor, "*batch n n"], x: Float[Tensor, "*batch *shape"], axis: int, beta: float
) -> None:
    r"""Average the Gram matrix of an axis in place: :math:`P \leftarrow \beta P + (1 - \beta)\, x_{(i)} x_{(i)}^T`.

    As in LAPACK only the lower triangle counts afterwards: blocks above the diagonal are neither computed nor written.

    Args:
        gram: averages so far; :func:`symmetric` gives the whole matrix.
        x: gradients; :math:`x_{(i)}` is their unfolding, with ``axis`` as rows and all other axes as columns.
        axis: axis of one tensor, from 0.
        beta: how much of the old average is kept.
    """
    rows = _unfolded(x, axis, gram.dim() - 2).mT
    for start in range(0, gram.shape[-1], _PANEL):
        stop = start + _PANEL
        panel, left, right = gram[..., start:stop, :stop], rows[..., start:stop, :], rows[..., :stop, :].mT
        (panel.baddbmm_ if gram.dim() == 3 else panel.addmm_)(left, right, beta=beta, alpha=1 - beta)


def symmetric(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return Gram matrices with both triangles, from their lower ones."""
    if gram.shape[-1] <= _PANEL:  # a single panel is a whole matrix
        return gram
    return gram.tril() + gram.tril(-1).mT


def rotate(
    x: Float[Tensor, "*batch *shape"], bases: Sequence[Float[Tensor, "*batch n n"] | None]
) -> Float[Tensor, "*batch *shape"]:
    """Return coordinates in the bases: each axis times the transpose of its basis; ``None`` leaves an axis alone."""
    for axis, basis in enumerate(bases):
        if basis is not None:
            x = along_axis(x, basis, axis)
    return x


def rotate_back(
    x: Float[Tensor, "*batch *shape"], bases: Sequence[Float[Tensor, "*batch n n"] | None]
) -> Float[Tensor, "*batch *shape"]:
    """Undo :func:`rotate`."""
    return rotate(x, [None if basis is None else basis.mT for basis in bases])


def along_axis(
    x: Float[Tensor, "*batch *shape"], matrix: Float[Tensor, "*batch n n"], axis: int
) -> Float[Tensor, "*batch *shape"]:
    r"""Return :math:`y_{..a..} = \sum_j x_{..j..} M_{ja}` with the sum over one axis."""
    if x.dim() == matrix.dim():  # matrices need no unfolding
        return matrix.mT @ x if axis == 0 else x @ matrix
    lead = matrix.dim() - 2
    moved = x.movedim(axis + lead, -1).shape
    return (_unfolded(x, axis, lead) @ matrix).reshape(moved).movedim(-1, axis + lead)


def _unfolded(x: Float[Tensor, "*batch *shape"], axis: int, lead: int) -> Float[Tensor, "*batch rest n"]:
    """Return matrices whose columns run along one axis; ``lead`` dimensions of ``x`` come before the axes."""
    if x.dim() == lead + 2:
        return x.mT if axis == 0 else x
    return x.movedim(axis + lead, -1).reshape(*x.shape[:lead], -1, x.shape[axis + lead])


def eigenbasis(
    gram: Float[Tensor, "*batch n n"], null_space: NullSpace, precision: torch.dtype
) -> Float[Tensor, "*batch n n"]:
    """Return eigenvectors as columns, the largest eigenvalue first.

    Args:
        gram: Gram matrices (lower triangles), best in float64.
        null_space: ``"lift"`` decides between the vectors of a null space by the diagonal matrix that falls from 1 to
            0: they are its eigenvectors there. ``"reference"`` leaves that to rounding.
        precision: dtype of the gradients. Eigenvalues below 1e-8 of the largest, or below the fraction that it cannot
            resolve, count as zero.
    """
    n = gram.shape[-1]
    tiny = torch.full((n,), 1e-30, dtype=gram.dtype, device=gram.device)
    eigenvalues, vectors = torch.linalg.eigh(gram + torch.diag_embed(tiny))
    if null_space == "lift" and not gram.is_meta:
        null = eigenvalues <= max(_NULL, _unresolved(n, precision)) * eigenvalues[..., -1:]
        if null.any():
            vectors = vectors @ _null_rotation(vectors, null)
    return vectors.flip(-1)


def _null_rotation(vectors: Float[Tensor, "*batch n n"], null: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    """Turn the first columns, which span a null space, and leave the others as they are."""
    n = vectors.shape[-1]
    ramp = torch.linspace(1, 0, n, dtype=vectors.dtype, device=vectors.device)
    decides = (vectors.mT * ramp) @ vectors * (null[..., :, None] & null[..., None, :])
    apart = torch.arange(2, n + 2, dtype=vectors.dtype, device=vectors.device)  # in order, above all of the ramp's
    turned = torch.linalg.eigh(decides + torch.diag_embed(apart * ~null)).eigenvectors
    return torch.where(null[..., None, :], turned, torch.eye(n, dtype=vectors.dtype, device=vectors.device))


def _unresolved(n: int, precision: torch.dtype) -> float:
    """The fraction of the largest eigenvalue of a Gram matrix that is lost in rounding."""
    return 4 * n**0.5 * torch.finfo(precision).eps


def rayleigh_quotients(
    gram: Float[Tensor, "*batch n n"], basis: Float[Tensor, "*batch n n"]
) -> Float[Tensor, "*batch n"]:
    r"""Return :math:`\mathrm{diag}(Q^T P Q)`: the eigenvalues, once the basis is an eigenbasis."""
    return ((symmetric(gram) @ basis) * basis).sum(-2)


def power_iteration(
    gram: Float[Tensor, "*batch n n"], basis: Float[Tensor, "*batch n n"], null_space: NullSpace, eps: float
) -> tuple[Float[Tensor, "*batch n n"], Int64[Tensor, "*batch n"]]:
    r"""Take one step of orthogonal iteration: columns sorted by Rayleigh quotient, then the Q factor of :math:`P Q`.

    With ``null_space="lift"`` the factor is that of :math:`(P + \delta \max(e)\, I) Q`, with :math:`\delta =
    \max(\epsilon, 4 \sqrt n\, u)` and :math:`u` the machine precision. A Gram matrix of low rank then keeps its basis
    of the null space, which rounding would otherwise choose again.

    Args:
        gram: Gram matrices (lower triangles).
        basis: orthogonal matrices.
        null_space: ``"lift"`` or ``"reference"`` (the plain step).
        eps: least fraction of the largest quotient that is added.

    Returns:
        The new bases, and for each new column the old one that it continues.
    """
    image = symmetric(gram) @ basis
    quotients = (image * basis).sum(-2)
    order = quotients.argsort(dim=-1, descending=True)
    if null_space == "lift":
        fraction = max(eps, _unresolved(gram.shape[-1], gram.dtype))
        image += fraction * quotients.amax(-1)[..., None, None] * basis
    columns = order[..., None, :].expand_as(image)
    return orthogonalize(image.gather(-1, columns)), order


def orthogonalize(matrix: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return the Q factor of the QR decomposition."""
    if matrix.is_meta:  # for which geqrf has no kernel
        return torch.empty_like(matrix)
    reflectors, tau = torch.geqrf(matrix)  # torch.linalg.qr would form the triangular factor as well
    return torch.linalg.householder_product(reflectors, tau)


def departure_from_orthogonality(basis: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\|Q^T Q - I\|_F` of each matrix."""
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    return torch.linalg.matrix_norm(basis.mT @ basis - identity)
