"""The loss function that a loss is, read from its graph: with its targets, and what a guess would lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from poise.doctor.tap.graph import constant_factor, op_name, saved, skip_views

_CLASSES = {"nllloss", "nllloss2d"}
_BINARY = {"binarycrossentropy", "binarycrossentropywithlogits"}
_SQUARES = {"mseloss"}
_MEAN = 1  # of a reduction


@dataclass(frozen=True, slots=True)
class LossNode:
    """A loss that is the mean of one loss function of torch.

    Args:
        kind: ``"classes"``, ``"binary"`` or ``"squares"``.
        target: what the function was given.
        factor: constant that the mean was multiplied with.
        classes: number of classes; 0 for the others.
    """

    kind: str
    target: Tensor
    factor: float
    classes: int = 0


def loss_node(root: Any) -> LossNode | None:
    """Return the loss function whose mean a loss is; ``None`` where it is made in another way.

    Args:
        root: the loss, with its graph.
    """
    if not isinstance(root, Tensor) or root.grad_fn is None:
        return None
    factor, node = constant_factor(skip_views(root.grad_fn))
    name = op_name(node) if node is not None else ""
    kind = "classes" if name in _CLASSES else "binary" if name in _BINARY else "squares" if name in _SQUARES else ""
    target, reduction, weight = (saved(node, field) for field in ("target", "reduction", "weight"))
    if not kind or not isinstance(target, Tensor) or reduction != _MEAN or weight is not None or not target.numel():
        return None
    if kind != "classes":
        return LossNode(kind, target.detach(), factor)
    prediction = saved(node, "self")
    if not isinstance(prediction, Tensor) or prediction.dim() < 2:
        return None
    ignored = saved(node, "ignore_index")
    target = target.detach().reshape(-1)
    if isinstance(ignored, int):
        ignored = ignored - (1 << 64) if ignored >= 1 << 63 else ignored  # kept as an unsigned number
        target = target[target != ignored]
    return LossNode(kind, target, factor, int(prediction.shape[1])) if len(target) else None
