"""Weights and their gradients: which weights matter only by direction, and which are only being scaled up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from poise.doctor.probes.hyperparameters import forward_order, is_adaptive
from poise.doctor.probes.probe import Probe
from poise.optim.geometry import effective_lr

if TYPE_CHECKING:
    from poise.doctor.tap.sink import Sink
    from poise.doctor.tap.timeline import Timeline

_DELTA = 0.1  # as in AdamP, for |cos| sqrt(n)
_HALF = (torch.float16, torch.bfloat16)
_SAMPLES = 3  # in a row, before a weight counts as scale-invariant
_ELEMENTS = 1 << 22  # of all weights that are measured: an inner product needs every coordinate


class ScaleInvarianceProbe(Probe):
    r"""Cosines of weight matrices and their gradients, which nothing but the scale of the weights decides.

    ``radial_alignment[p]`` = :math:`|\cos(w, g)| \sqrt{\dim w}`: about 1 for directions at random, next to 0 for a
    weight that a normalisation follows. ``effective_lr[p]``, only of weights whose alignment was below 0.1 in three
    samples in a row (and that are on the CPU): :math:`\eta / \lVert w\rVert^2` (SGD) or :math:`\eta / \lVert w\rVert`
    (Adam). ``loss_scaling_alignment[p]`` = :math:`\cos(w, -g)` of the last matrix that the forward pass uses: near 1
    where the loss falls by scaling the weights up.

    References:
        Heo et al., AdamP: slowing down the slowdown for momentum optimizers on scale-invariant weights, 2021.
        van Laarhoven, L2 regularization versus batch and weight normalization, 2017.
        Prieto et al., Grokking at the edge of numerical stability, 2025.
    """

    def __init__(self) -> None:
        self._tangential: dict[int, int] = {}  # how often in a row, by the parameter's place
        self._rates: tuple[list[int], list[Tensor]] = [], []

    def before_step(self, sink: Sink, timeline: Timeline) -> None:
        """Compare the weights with the gradients of the step."""
        chosen = _matrices(timeline)
        if not chosen:
            return
        weights = [timeline.parameters[i].detach() for i in chosen]
        gradients = [g for i in chosen if (g := timeline.parameters[i].grad) is not None]
        cosines = _cosines(weights, gradients)
        alignments = cosines.abs() * torch.tensor([math.sqrt(w.numel()) for w in weights], device=cosines.device)
        sink.emit(timeline, "radial_alignment", [timeline.names[i] for i in chosen], alignments)
        self._emit_rates(sink, timeline, chosen, alignments)
        head = _head(sink, timeline, chosen)
        sink.emit(timeline, "loss_scaling_alignment", [timeline.names[chosen[i]] for i in head], -cosines[head])

    def _emit_rates(self, sink: Sink, timeline: Timeline, chosen: list[int], alignments: Tensor) -> None:
        if not alignments.is_cpu:
            return  # a device would have to be waited for
        rule = "adam" if is_adaptive(timeline) else "sgd"
        rates = _learning_rates(timeline)
        names, values = [], []
        for i, alignment in zip(chosen, alignments.tolist(), strict=True):
            key = id(timeline.parameters[i])
            self._tangential[key] = self._tangential.get(key, 0) + 1 if alignment < _DELTA else 0
            if self._tangential[key] >= _SAMPLES:
                names.append(timeline.names[i])
                values.append(effective_lr(timeline.parameters[i].detach(), rates[i], rule))  # type: ignore[arg-type]
        sink.emit(timeline, "effective_lr", names, values)


def _matrices(timeline: Timeline) -> list[int]:
    """Return the places of the matrices with a plain gradient, on one device, as far as the limit allows."""
    chosen, elements = [], 0
    device = timeline.parameters[0].device
    for i in timeline.shown_of(range(len(timeline.parameters))):
        p = timeline.parameters[i]
        if p.dim() < 2 or p.device != device or type(p.data) is not Tensor:
            continue
        if p.grad is None or p.grad.is_sparse or not p.is_floating_point():
            continue
        elements += p.numel()
        if elements <= _ELEMENTS and p.numel():
            chosen.append(i)
    return chosen


def _cosines(weights: list[Tensor], gradients: list[Tensor]) -> Float[Tensor, " matrix"]:
    """Return all cosines at once; NaN for a gradient of zero, which has no direction."""
    ws, gs = ([t.float() if t.dtype in _HALF else t for t in tensors] for tensors in (weights, gradients))
    products = [torch.dot(w.ravel(), g.ravel()) for w, g in zip(ws, gs, strict=True)]
    columns = [*products, *torch._foreach_norm(ws), *torch._foreach_norm(gs)]
    product, weight, gradient = torch.stack([c.float() for c in columns]).view(3, -1)
    size = weight * gradient
    return torch.where(size > 0, product / size, torch.where(gradient > 0, 0.0, torch.nan))


def _head(sink: Sink, timeline: Timeline, chosen: list[int]) -> list[int]:
    """Return the position, among those chosen, of the matrix that the forward pass used last."""
    rank = {name: i for i, name in enumerate(forward_order(sink))}
    return [max(range(len(chosen)), key=lambda i: (rank.get(timeline.names[chosen[i]], -1), i))]


def _learning_rates(timeline: Timeline) -> list[float | Tensor]:
    return [group.get("lr", 0.0) for group in timeline.optimizer.param_groups for _ in group["params"]]
