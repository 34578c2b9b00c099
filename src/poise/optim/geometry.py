r"""Radial and tangential parts of updates, and the effective learning rate of a scale-invariant weight.

If :math:`f(cw) = f(w)` for :math:`c > 0`, only the direction of :math:`w` matters: a step along :math:`w` changes
nothing but the size of all later steps. A *view* defines which numbers make up one such direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor

View = Literal["channel", "layer", "tensor", "global"]
"""What is one vector: every output channel (``w[i]``; a tensor of fewer than two axes is one channel), every tensor
(``"layer"``, as in papers on normalised networks, or ``"tensor"``), or all tensors of a list together."""

VIEWS: tuple[View, ...] = get_args(View)

Rule = Literal["sgd", "adam", "adamw", "independent_adamw"]
"""How an update rule treats the scale of gradients and decay.

``"sgd"``: with or without (Nesterov) momentum, decay added to the gradient; ``"adam"``: normalised steps, decay added
to the gradient; ``"adamw"``: normalised steps, decay times learning rate taken from the weight (AdamP too);
``"independent_adamw"``: the same without the learning rate."""

RULES: tuple[Rule, ...] = get_args(Rule)


def check_view(view: str) -> None:
    """Raise a ValueError unless ``view`` is one of :data:`VIEWS`."""
    if view not in VIEWS:
        raise ValueError(f"view must be one of {VIEWS}, got {view!r}")


def check_rule(rule: str) -> None:
    """Raise a ValueError unless ``rule`` is one of :data:`RULES`."""
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")


def inner(w: Sequence[Tensor], x: Sequence[Tensor], view: View) -> list[Tensor]:
    """Return the inner products of the vectors of a view, one tensor for each of ``w``, shaped to broadcast over it.

    Half-precision tensors are summed in float32.
    """
    if view == "channel":
        pairs = zip(_wide(w), _wide(x), strict=True)
        return [
            (a * b).sum(_rest(a), keepdim=True) if a.ndim > 1 else torch.dot(a.ravel(), b.ravel()) for a, b in pairs
        ]
    products = list(map(torch.dot, flat(w), flat(x)))
    return products if view != "global" else _shared(products)


def norm(w: Sequence[Tensor], view: View) -> list[Tensor]:
    """Return the norms of the vectors of a view, one tensor for each of ``w``, shaped to broadcast over it.

    Half-precision tensors are summed in float32.
    """
    wide = _wide(w)
    if view == "channel":
        axes = [_rest(a) if a.ndim > 1 else None for a in wide]
        return [torch.linalg.vector_norm(a, dim=d, keepdim=d is not None) for a, d in zip(wide, axes, strict=True)]
    norms = [torch.linalg.vector_norm(a) for a in wide]
    if view != "global":
        return norms
    return [total.sqrt() for total in _shared([n.square() for n in norms])]


@overload
def radial(w: Tensor, x: Tensor, view: View = "tensor") -> Tensor: ...
@overload
def radial(w: Sequence[Tensor], x: Sequence[Tensor], view: View = "tensor") -> list[Tensor]: ...
def radial(w: Tensor | Sequence[Tensor], x: Tensor | Sequence[Tensor], view: View = "tensor") -> Tensor | list[Tensor]:
    r"""Return the part of ``x`` along ``w``, :math:`\frac{\langle w, x\rangle}{\lVert w\rVert^2} w`.

    Args:
        w: weights, a tensor or a sequence of tensors.
        x: what is to be divided (an update, a gradient), of the shapes of ``w``.
        view: which numbers make up one vector, see :data:`View`.

    Returns:
        A tensor or list of the shapes of ``x``; zero where ``w`` is zero.

    Raises:
        ValueError: if ``view`` is unknown or the shapes differ.

    References:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
        arXiv:2006.08217.

    Example:
        >>> radial(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), "channel")
        tensor([[3., 0.],
                [0., 6.]])
    """
    ws, xs = _pairs(w, x, view)
    parts = [a * s.to(a.dtype) for a, s in zip(ws, _shares(ws, xs, view), strict=True)]
    return parts[0] if isinstance(w, Tensor) else parts


@overload
def tangential(w: Tensor, x: Tensor, view: View = "tensor") -> Tensor: ...
@overload
def tangential(w: Sequence[Tensor], x: Sequence[Tensor], view: View = "tensor") -> list[Tensor]: ...
def tangential(
    w: Tensor | Sequence[Tensor], x: Tensor | Sequence[Tensor], view: View = "tensor"
) -> Tensor | list[Tensor]:
    """Return the part of ``x`` orthogonal to ``w``: ``x`` without its radial part.

    Args:
        w: weights, a tensor or a sequence of tensors.
        x: what is to be divided (an update, a gradient), of the shapes of ``w``.
        view: which numbers make up one vector, see :data:`View`.

    Returns:
        A tensor or list of the shapes of ``x``; ``x`` itself where ``w`` is zero.

    Raises:
        ValueError: if ``view`` is unknown or the shapes differ.

    References:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
        arXiv:2006.08217.

    Example:
        >>> tangential(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([0., 4.])
    """
    ws, xs = _pairs(w, x, view)
    parts = [b - a * s.to(a.dtype) for a, b, s in zip(ws, xs, _shares(ws, xs, view), strict=True)]
    return parts[0] if isinstance(w, Tensor) else parts


@overload
def cosine(w: Tensor, g: Tensor, view: View = "tensor") -> Tensor: ...
@overload
def cosine(w: Sequence[Tensor], g: Sequence[Tensor], view: View = "tensor") -> list[Tensor]: ...
def cosine(w: Tensor | Sequence[Tensor], g: Tensor | Sequence[Tensor], view: View = "tensor") -> Tensor | list[Tensor]:
    """Return the cosines between the vectors of ``w`` and ``g``; 0 for a scale-invariant weight and its gradient.

    Args:
        w: weights, a tensor or a sequence of tensors.
        g: gradients or updates of the same shapes.
        view: which numbers make up one vector, see :data:`View`.

    Returns:
        For each tensor a vector of shape (channels,) in the view ``"channel"``, else a scalar. Where ``w`` or ``g`` is
        zero the cosine is 0.

    Raises:
        ValueError: if ``view`` is unknown or the shapes differ.

    References:
        Heo et al., ICLR 2021, arXiv:2006.08217.
    """
    ws, gs = _pairs(w, g, view)
    products, sizes = inner(ws, gs, view), [a * b for a, b in zip(norm(ws, view), norm(gs, view), strict=True)]
    cosines = [torch.where(s > 0, p / s, 0.0) for p, s in zip(products, sizes, strict=True)]
    flat = [_flat(c, a, view) for c, a in zip(cosines, ws, strict=True)]
    return flat[0] if isinstance(w, Tensor) else flat


def effective_lr(
    w: Float[Tensor, "..."], lr: float | Tensor, rule: Rule = "sgd", view: View = "tensor"
) -> Float[Tensor, "..."]:
    r"""Return the effective learning rate of the direction of a scale-invariant weight.

    The direction :math:`w / \lVert w \rVert` moves as if it had norm 1 and the learning rate were :math:`\eta / \lVert
    w\rVert^2` (SGD, with any momentum: the gradient shrinks as the weight grows) or :math:`\eta / \lVert w\rVert` (Adam
    and similar optimizers: the step does not).

    Args:
        w: the weight.
        lr: its learning rate.
        rule: the update rule, see :data:`Rule`.
        view: which numbers make up one vector, see :data:`View`.

    Returns:
        One rate per channel of shape (channels,) in the view ``"channel"``, else a scalar; infinite for a zero weight.

    Raises:
        ValueError: if ``view`` or ``rule`` is unknown.

    References:
        van Laarhoven, "L2 Regularization versus Batch and Weight Normalization", 2017, arXiv:1706.05350.

    Example:
        >>> effective_lr(torch.tensor([3.0, 4.0]), 0.5)
        tensor(0.0200)
    """
    check_rule(rule)
    check_view(view)
    size = _flat(norm([w], view)[0], w, view)
    return lr / (size.square() if rule == "sgd" else size)


def _pairs(w: Tensor | Sequence[Tensor], x: Tensor | Sequence[Tensor], view: str) -> tuple[list[Tensor], list[Tensor]]:
    check_view(view)
    ws, xs = ([v] if isinstance(v, Tensor) else list(v) for v in (w, x))
    if [v.shape for v in ws] != [v.shape for v in xs]:
        raise ValueError(f"w and x must have the same shapes, got {_shapes(ws)} and {_shapes(xs)}")
    return ws, xs


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


def _shares(w: Sequence[Tensor], x: Sequence[Tensor], view: View) -> list[Tensor]:
    """How often each vector of ``w`` is contained in that of ``x``."""
    squares = [n.square() for n in norm(w, view)]
    return [torch.where(s > 0, p / s, 0.0) for p, s in zip(inner(w, x, view), squares, strict=True)]


def _flat(x: Tensor, w: Tensor, view: View) -> Tensor:
    """One number per channel of ``w``, or one."""
    return x.flatten() if view == "channel" and w.ndim > 1 else x.reshape(-1)[0]


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors as vectors, those of half precision as float32."""
    return [t.ravel() for t in _wide(tensors)]


def _rest(w: Tensor) -> tuple[int, ...]:
    """All axes but the first."""
    return tuple(range(1, w.ndim))


def _shared(parts: Sequence[Tensor]) -> list[Tensor]:
    """The sum of one number per tensor, for every tensor."""
    total = torch.stack([part.to(parts[0].device) for part in parts]).sum()
    return [total.to(part.device) for part in parts]


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
