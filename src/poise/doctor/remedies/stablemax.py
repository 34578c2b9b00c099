r"""Train on a softmax whose terms grow linearly.

## What it does
No sample is then absorbed by rounding. The gradient of every ``cross_entropy`` that is computed for training is that of
the cross-entropy of StableMax, :math:`p_i = s(z_i) / \sum_j s(z_j)` with :math:`s(z) = z + 1` from zero up and :math:`1
/ (1 - z)` below; class weights, ignored targets, label smoothing and reductions act as in torch. The *number* that the
script sees stays the plain cross-entropy of the softmax, so treated and untreated losses can be compared. ``VALUE`` is
the fraction of the gradient that comes from StableMax: 1 by default, all of it.

## When it helps
Against ``softmax_collapse``: in float32 a sample whose right class leads by 16.6 has a loss and a gradient of exactly
zero, and learning stops because of rounding, although errors are left. Under StableMax both stay above zero at any
lead.

## What it costs
One more cross-entropy per loss. The outputs stand for other probabilities: what a softmax computes from them, such as
confidences and the recorded loss itself, falls more slowly than in the untreated run. Unlike softmax, StableMax changes
with a shift that is common to all logits. Losses built from ``log_softmax`` and ``nll_loss`` are not reached.

## Making it permanent
Replace the loss of the script by ``poise.losses.stablemax_cross_entropy``, or apply the map shown to the logits.

## References
Prieto et al., "Grokking at the Edge of Numerical Stability", 2025, arXiv:2501.04697.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poise.doctor.remedies.remedy import Remedy, Values
from poise.losses.stablemax import log_stablemax


class StableMax(Remedy):
    """Let the fraction ``value`` of every training cross-entropy's gradient come from StableMax.

    Args:
        value: fraction in (0, 1]. Default 1.
    """

    name = "stablemax"
    default = 1.0
    values = Values(above=0.0, below=1.0, closed_above=True)

    def cross_entropy(self, call: Callable[..., Tensor], input: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """Compute the loss with the other gradient; losses that need no gradient are left alone."""
        loss = call(input, target, **kwargs)
        if not (torch.is_grad_enabled() and input.requires_grad):
            return loss
        # The cross-entropy takes a log-softmax of what is one already, which changes nothing.
        scores = log_stablemax(input, 0 if input.dim() == 1 else 1)
        if kwargs.get("weight") is not None:
            kwargs = {**kwargs, "weight": kwargs["weight"].to(scores.dtype)}
        if target.is_floating_point():
            target = target.to(scores.dtype)
        stable = call(scores, target, **kwargs).to(loss.dtype)
        rest = (1 - self.value) * (loss - loss.detach()) if self.value < 1 else 0.0
        return loss.detach() + self.value * (stable - stable.detach()) + rest  # the value is that of the plain loss

    def code(self) -> str:
        """Return the loss to use."""
        plain = "" if self.value == 1 else f"{1 - self.value!r} * F.cross_entropy(logits, targets) + {self.value!r} * "
        return (
            "# in the loop, instead of loss = F.cross_entropy(logits, targets)\n"
            "scores = torch.where(logits >= 0, logits.clamp(min=0).log1p(), -(-logits).clamp(min=0).log1p())\n"
            f"loss = {plain}F.cross_entropy(scores, targets)\n"
        )
