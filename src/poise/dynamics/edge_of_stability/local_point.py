"""The point at which a loss is linearised: its height, its slope and its kinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poise.curvature.loss.autograd_graph import recorded_operations
from poise.curvature.loss.evaluation import Evaluation

_FITTED = 1e-3
_KINKED = (
    "Relu",
    "LeakyRelu",
    "Prelu",
    "Rrelu",
    "Threshold",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "Softshrink",
    "Hardshrink",
    "Abs",
    "Clamp",
    "Maximum",
    "Minimum",
    "Max",
    "Min",
    "Amax",
    "Amin",
    "MaxPool",
    "AdaptiveMaxPool",
    "L1Loss",
)


@dataclass(frozen=True, slots=True)
class LocalPoint:
    """The point at which a loss is examined.

    Attributes:
        loss: mean loss.
        grad_norm: norm of its gradient.
        kinks: operations on the way to the loss whose derivative jumps, such as ``"Relu"``.
    """

    loss: float
    grad_norm: float
    kinks: tuple[str, ...]

    @property
    def interpolates(self) -> bool:
        """Whether the mean loss is at most 1e-3, so that the model fits (nearly) every example."""
        return self.loss <= _FITTED

    def gain(self, sharpness: float) -> float:
        r"""Return :math:`|g|^2 / 2\lambda`: what the loss can still fall by along the gradient, at the least.

        Args:
            sharpness: largest eigenvalue of the Hessian, positive.
        """
        return self.grad_norm**2 / (2 * sharpness)


def local_point(model: nn.Module, loss_fn: Any, data: Any, params: Sequence[str] | None = None) -> LocalPoint:
    """Return loss, gradient norm and kinks at a model's present parameters.

    Args:
        model: float32 or float64.
        loss_fn: see :class:`poise.curvature.Hessian`.
        data: a batch or an iterable of batches.
        params: names of parameters or of modules; by default all that require gradients.

    Raises:
        ValueError: if the loss is random, not finite or not a scalar.
    """
    evaluation = Evaluation(model, loss_fn, data, params)
    evaluation.examine(evaluation.checked_loss)
    losses, operations = [], set()
    gradient = torch.zeros(evaluation.flat.numel, dtype=evaluation.flat.dtype, device=evaluation.flat.device)
    with evaluation.measuring():
        for i in range(len(evaluation)):
            loss = evaluation.checked_loss(i)
            operations |= recorded_operations([loss])
            parts = torch.autograd.grad(loss, evaluation.flat.tensors, allow_unused=True)
            gradient += evaluation.flat.join(parts)
            losses.append(loss.item())
    kinks = tuple(kink for kink in _KINKED if any(_is(name, kink) for name in operations))
    return LocalPoint(math.fsum(losses), float(torch.linalg.vector_norm(gradient, dtype=torch.float64)), kinks)


def _is(operation: str, kink: str) -> bool:
    """Whether an operation's name is the kink's, up to ``Backward`` and the suffix of variants (``MaxPool2D``)."""
    stem = operation.split("Backward")[0]
    return stem == kink or (stem.startswith(kink) and kink in ("Clamp", "MaxPool", "AdaptiveMaxPool", "Rrelu"))
