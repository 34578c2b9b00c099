"""Clip the global gradient norm of every step.

## What it does
Just before ``optimizer.step()`` all gradients of that optimizer are multiplied by ``min(1, VALUE / norm)``, where
``norm`` is their joint Euclidean norm. Each optimizer is clipped on its own. Default 1.0. Gradients that a
``GradScaler`` left scaled (fused optimizers do the unscaling themselves) are measured unscaled.

## When it helps
Against exploding gradients: rare steps whose gradient is many times longer than usual, as in recurrent networks, deep
stacks, or after a bad batch. The direction is kept, only the length is bounded.

## What it costs
One norm over all gradients per step. A bound below the usual norm turns training into normalised gradient descent (for
SGD a hidden change of the learning rate); with Adam a constant rescaling of gradients cancels, so only rare large
gradients are affected. Choose a bound near the 90th percentile of the recorded ``grad_norm``.

## Making it permanent
``torch.nn.utils.clip_grad_norm_`` between ``backward()`` and ``step()``; with a ``GradScaler``, after
``scaler.unscale_(optimizer)``.

## References
Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013, arXiv:1211.5063.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy, Values


class ClipGradNorm(Remedy):
    """Bound the joint norm of an optimizer's gradients by ``value``.

    Args:
        value: largest norm, above 0. Default 1.0.
    """

    name = "clip_grad_norm"
    default = 1.0
    values = Values(above=0.0)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Clip the gradients in place."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        scale = getattr(optimizer, "grad_scale", None)
        clip_grads_with_norm_(parameters, self.value, norm if scale is None else norm / scale)

    def code(self) -> str:
        """Return the call of the clipping function."""
        return (
            "# in the loop, before optimizer.step()\n"
            'parameters = [p for group in optimizer.param_groups for p in group["params"]]\n'
            f"torch.nn.utils.clip_grad_norm_(parameters, max_norm={self.value!r})\n"
        )
