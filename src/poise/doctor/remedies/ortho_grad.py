r"""Remove the part of gradients that scales the weights.

## What it does
Before each step, per parameter tensor, the part of the gradient along the weights is removed, :math:`g_\perp = g - s
\frac{\langle w, g\rangle}{\lVert w\rVert^2} w`, and what is left gets the norm that the gradient had. ``VALUE`` is
:math:`s`, the fraction that is removed: 1 by default, all of it. A gradient that points along its weight up to rounding
becomes zero; tensors of one number are left alone.

## When it helps
Against ``loss_scaling`` and the ``softmax_collapse`` that it ends in: once a classifier fits its data, scaling all
logits up still lowers the loss and changes no prediction. Without that direction a network goes on learning, and often
generalises long before it otherwise would.

## What it costs
Two inner products per tensor and step. Where the scale of the weights is not settled yet, which is early in training,
it slows the fit down. The wrapped optimizer's step need not be orthogonal (momentum, Adam's denominator), and weight
decay acts as before.

## Making it permanent
Wrap the optimizer in ``poise.optim.OrthoGrad``, or project the gradients in the loop.

## References
Prieto et al., "Grokking at the Edge of Numerical Stability", 2025, arXiv:2501.04697.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy, Values
from poise.optim.geometry import radial

_NOISE = 4.0  # rounding errors: what is left below that has no direction


class OrthoGrad(Remedy):
    """Remove the fraction ``value`` of each gradient's part along its weights, and keep the gradient's norm.

    Args:
        value: fraction in (0, 1]. Default 1.
    """

    name = "ortho_grad"
    default = 1.0
    values = Values(above=0.0, below=1.0, closed_above=True)

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Project the gradients in place."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None or p.numel() < 2:
                    continue
                if p.grad.is_sparse or p.is_complex():
                    self.note("sparse and complex gradients were not projected")
                else:
                    self._project(p, p.grad)

    def _project(self, weight: Tensor, gradient: Tensor) -> None:
        before = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
        gradient.sub_(radial(weight.detach(), gradient), alpha=self.value)
        after = torch.linalg.vector_norm(gradient, dtype=before.dtype)
        noise = after <= _NOISE * torch.finfo(gradient.dtype).eps * before
        gradient.mul_(torch.where(noise, 0.0, before / after).to(gradient.dtype))

    def code(self) -> str:
        """Return the projection, for the loop."""
        return (
            "# in the loop, before optimizer.step()\n"
            "with torch.no_grad():\n"
            '    for p in (p for group in optimizer.param_groups for p in group["params"]):\n'
            "        if p.grad is None or p.numel() < 2:\n"
            "            continue\n"
            "        norm = p.grad.norm()\n"
            f"        p.grad -= {self.value!r} * (p * p.grad).sum() / p.square().sum().clamp(min=1e-30) * p\n"
            "        left = p.grad.norm()\n"
            f"        p.grad *= torch.where(left > {_NOISE} * torch.finfo(p.dtype).eps * norm, norm / left, 0.0)\n"
        )
