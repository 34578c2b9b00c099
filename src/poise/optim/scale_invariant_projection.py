"""The test for scale invariance and the projection of AdamP and SGDP, without a device sync."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ScaleInvariant = Literal["auto", "channel", "layer"] | bool
"""Which weights of a param group are scale-invariant.

``"auto"``: those whose gradient is orthogonal to them, tested at every step, first per output channel, then per tensor.
``"channel"``, ``"layer"``: all with two axes or more, per output channel or per tensor. ``True``: all with two axes or
more, per channel where the test finds the channels invariant, else per tensor. ``False``: none."""

CHOICES = (*get_args(get_args(ScaleInvariant)[0]), True, False)

_BLOCK = 2**18
"""Numbers per block on a CPU: the inputs of the next operation are then still in its cache."""


def check_projection(group: dict[str, Any]) -> None:
    """Raise where a param group's settings of the projection are out of range."""
    if not group["delta"] >= 0:
        raise ValueError(f"delta must not be negative, got {group['delta']!r}")
    if not 0.0 <= group["wd_ratio"] <= 1.0:
        raise ValueError(f"wd_ratio must lie in [0, 1], got {group['wd_ratio']!r}")
    if not group["eps"] > 0:
        raise ValueError(f"eps must be positive, got {group['eps']!r}")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"weight_decay must not be negative, got {group['weight_decay']!r}")
    if not isinstance(group["lr"], Tensor) and not group["lr"] >= 0:  # to read a tensor would be a device sync
        raise ValueError(f"lr must not be negative, got {group['lr']!r}")
    if group["scale_invariant"] not in CHOICES:
        raise ValueError(f"scale_invariant must be one of {CHOICES}, got {group['scale_invariant']!r}")
    if any(p.is_complex() for p in group["params"]):
        raise TypeError("params must be real, got a complex parameter (give torch.view_as_real of it)")


def with_dense_gradient(params: Sequence[Tensor], name: str) -> list[Tensor]:
    """Return the parameters that have a gradient.

    Raises:
        RuntimeError: in the name of an optimizer, if a gradient is sparse.
    """
    weights = [p for p in params if p.grad is not None]
    if any(p.grad is not None and p.grad.is_sparse for p in weights):
        raise RuntimeError(f"{name} takes dense gradients, got a sparse one; use torch.optim.SparseAdam")
    return weights


def gradients(weights: Sequence[Tensor], maximize: bool) -> list[Tensor]:
    """Return the gradients of what is to be minimised."""
    grads = [w.grad for w in weights if w.grad is not None]
    return list(torch._foreach_neg(grads)) if maximize else grads


def by_device_and_dtype(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Divide weights into lists that one kernel can take."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for w in weights:
        alike.setdefault((w.device, w.dtype), []).append(w)
    yield from alike.values()


def projected_step(
    weights: list[Tensor], grads: list[Tensor], updates: list[Tensor], group: dict[str, Any], decay: float
) -> None:
    r"""Decay the weights and take the steps :math:`u`, without their radial part where weights are scale-invariant.

    .. math:: w \leftarrow (1 - \eta r \lambda) w - \eta (u - \langle n, u\rangle n),
        \qquad n = \frac{w}{\lVert w\rVert + \epsilon}

    for scale-invariant weights, :math:`w \leftarrow (1 - \eta\lambda) w - \eta u` for the others.

    Args:
        weights: weights of one device and dtype.
        grads: their gradients.
        updates: what the optimizer would subtract at learning rate 1; overwritten.
        group: has ``lr``, ``scale_invariant``, ``delta``, ``wd_ratio`` and ``eps``.
        decay: weight decay per unit of learning rate.
    """
    able = [w.ndim > 1 and w.numel() > 0 and group["scale_invariant"] is not False for w in weights]
    plain = [(w, u) for w, u, a in zip(weights, updates, able, strict=True) if not a]
    if plain:
        _plain_step([w for w, _ in plain], [u for _, u in plain], group["lr"], decay)
    chosen = [w for w, a in zip(weights, able, strict=True) if a]
    if chosen:
        every = zip(weights, grads, updates, able, strict=True)
        _projected_step(_rows_of(chosen), [(w, g, u) for w, g, u, a in every if a], group, decay)


def _plain_step(weights: list[Tensor], updates: list[Tensor], lr: float | Tensor, decay: float) -> None:
    if decay != 0:
        torch._foreach_add_(updates, weights, alpha=decay)
    _subtract(weights, updates, lr)


def _subtract(weights: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    if isinstance(lr, Tensor):  # stays where it is
        torch._foreach_mul_(updates, lr.to(updates[0].device))
        torch._foreach_sub_(weights, updates)
    else:
        torch._foreach_add_(weights, updates, alpha=-lr)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows (output channels) of several weights, one after the other, and the blocks in which they are visited."""

    block_rows: tuple[int, ...]  # of a block, for every weight
    counts: tuple[int, ...]  # of rows, for every block
    lengths: Int64[Tensor, " weights"]
    owner: Int64[Tensor, " rows"]
    root_of_row: Float[Tensor, " rows"]
    root_of_weight: Float[Tensor, " weights"]

    def sum(self, x: Float[Tensor, " rows"]) -> Float[Tensor, " weights"]:
        return torch.segment_reduce(x, "sum", lengths=self.lengths, unsafe=True)

    def max(self, x: Float[Tensor, " rows"]) -> Float[Tensor, " weights"]:
        return torch.segment_reduce(x, "max", lengths=self.lengths, unsafe=True)


def _rows_of(weights: list[Tensor]) -> _Rows:
    wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    shapes, device = tuple(w.shape for w in weights), weights[0].device
    if torch.compiler.is_compiling():
        return _build_rows(shapes, device, wide, None)
    return _rows(shapes, device, wide, _BLOCK if device.type == "cpu" else None)


def _build_rows(shapes: tuple[torch.Size, ...], device: torch.device, dtype: torch.dtype, block: int | None) -> _Rows:
    lengths = torch.tensor([shape[0] for shape in shapes])
    sizes = torch.tensor([shape.numel() for shape in shapes], dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(len(shapes)), lengths)
    each = [shape[0] if block is None else min(shape[0], max(1, block * shape[0] // shape.numel())) for shape in shapes]
    counts = [len(part) for shape, n in zip(shapes, each, strict=True) for part in torch.empty(shape[0]).split(n)]
    root_of_row = (sizes / lengths).sqrt()[owner].to(device, dtype)
    return _Rows(
        tuple(each), tuple(counts), lengths.to(device), owner.to(device), root_of_row, sizes.sqrt().to(device, dtype)
    )


_rows = lru_cache(maxsize=256)(_build_rows)


def _projected_step(
    rows: _Rows, triples: list[tuple[Tensor, Tensor, Tensor]], group: dict[str, Any], decay: float
) -> None:
    blocks = [
        block
        for triple, n in zip(triples, rows.block_rows, strict=True)
        for block in ([triple] if n == len(triple[0]) else zip(*(x.split(n) for x in triple), strict=True))
    ]
    room = blocks[0][0].new_empty(max(w.numel() for w, _, _ in blocks))
    sums = [_row_sums(w, g, u, room) for w, g, u in blocks]
    w_norm, wu, g_norm, wg = (torch.cat(part) for part in zip(*sums, strict=True))
    w_norm_all = rows.sum(w_norm.square()).sqrt()
    by_channel, by_layer = _invariance(rows, w_norm, w_norm_all, g_norm, wg, group)
    eps, of_rows = group["eps"], partial(torch.index_select, dim=0, index=rows.owner)
    channel_share = (wu / (w_norm + eps).square()).masked_fill(~of_rows(by_channel), 0.0)
    layer_share = (rows.sum(wu) / (w_norm_all + eps).square()).masked_fill(by_channel | ~by_layer, 0.0)
    if decay != 0:
        spared = decay * (1 - group["wd_ratio"])
        layer_share += (by_channel | by_layer).to(layer_share.dtype) * spared - decay
    share = channel_share + of_rows(layer_share)
    for (w, _, u), s in zip(blocks, share.split(rows.counts), strict=True):
        u.addcmul_(w, s.view(-1, *[1] * (w.ndim - 1)), value=-1)
        _subtract([w], [u], group["lr"])


def _row_sums(w: Tensor, g: Tensor, u: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return |w|, <w, u>, |g| and <w, g> of every row; products are put where there is room, again and again."""
    axes, wide = tuple(range(1, w.ndim)), torch.float64 if w.dtype == torch.float64 else torch.float32
    products = (room if room.numel() == w.numel() else room[: w.numel()]).view(w.shape)
    return (
        torch.linalg.vector_norm(w, dim=axes, dtype=wide),
        torch.mul(w, u, out=products).sum(axes, dtype=wide),
        torch.linalg.vector_norm(g, dim=axes, dtype=wide),
        torch.mul(w, g, out=products).sum(axes, dtype=wide),
    )


def _invariance(
    rows: _Rows, w_norm: Tensor, w_norm_all: Tensor, g_norm: Tensor, wg: Tensor, group: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Which weights are projected per channel, and which of the others per layer."""
    kind, delta, eps = group["scale_invariant"], group["delta"], group["eps"]
    always = torch.ones_like(w_norm_all, dtype=torch.bool)
    if kind == "channel":
        return always, ~always
    if kind == "layer":
        return ~always, always
    cosine = wg.abs() / (g_norm.clamp_min(eps) * w_norm.clamp_min(eps))
    by_channel = rows.max(cosine * rows.root_of_row) < delta
    if kind is True:
        return by_channel, always
    g_norm_all = rows.sum(g_norm.square()).sqrt()
    cosine_all = rows.sum(wg).abs() / (g_norm_all.clamp_min(eps) * w_norm_all.clamp_min(eps))
    return by_channel, cosine_all * rows.root_of_weight < delta
