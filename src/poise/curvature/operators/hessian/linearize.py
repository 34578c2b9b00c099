"""Hessian products from the gradient's linearisation, traced once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from poise.curvature.loss.autograd_graph import recorded_operations
from poise.curvature.loss.evaluation import Evaluation
from poise.curvature.operators.hessian.mode import HessianProduct


def linearize(evaluation: Evaluation) -> HessianProduct:
    """Return v -> H v that replays a trace: expensive to build, cheapest per product, memory for all batches.

    Args:
        evaluation: the loss.

    Raises:
        ValueError: if the loss uses ``F.mse_loss``.
    """
    flat = evaluation.flat
    _check_traceable(evaluation.loss(0))

    def loss(*parameters: Tensor) -> Tensor:
        return torch.stack([evaluation.loss(i, parameters) for i in range(len(evaluation))]).sum()

    gradient = torch.func.grad(loss, argnums=tuple(range(len(flat.tensors))))
    with warnings.catch_warnings():
        # torch's constant folding warns of its own doing.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
        _, along = torch.func.linearize(gradient, *(p.detach() for p in flat.tensors))

    def product(v: Tensor) -> Tensor:
        return flat.join(along(*flat.split(v)))

    return product


def _check_traceable(loss: Tensor) -> None:
    """Look for the kernel that crashes the process in ``torch.func.linearize`` (seen in torch 2.13)."""
    if any(name.startswith("MseLossBackward") for name in recorded_operations([loss])):
        raise ValueError(
            "torch.func.linearize does not survive F.mse_loss inside loss_fn; write "
            "(outputs - targets).square().mean(), give nn.MSELoss() as loss_fn, or take mode='retained'"
        )
