r"""Keep the log-normaliser of the output softmax near zero.

## What it does
Adds the gradient of :math:`c \cdot \mathrm{mean}(\log^2 Z)`, :math:`Z = \sum_i e^{y_i}` over the class dimension, to
every ``cross_entropy`` that is computed for training. Ignored targets do not count; with ``reduction="sum"`` the sum
takes the place of the mean, with ``"none"`` each element gets its own term. The *number* that the script sees stays the
plain cross-entropy, so treated and untreated losses can be compared. ``VALUE`` is :math:`c`, 1e-4 by default.

## When it helps
Against ``output_logit_divergence``: cross-entropy does not change when a constant is added to all logits, so nothing
keeps them near zero; they drift, :math:`\log Z` leaves the range of low precision, and late in training the loss
breaks.

## What it costs
One log-sum-exp per loss, and a slight pull on the logits (the gradient is :math:`2 c \log Z` times the softmax).
Losses built from ``log_softmax`` and ``nll_loss`` are not reached.

## Making it permanent
Add the term to the loss of the script.

## References
Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, arXiv:2204.02311.
Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023, arXiv:2309.14322.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from poise.doctor.remedies.remedy import Remedy, Values


class ZLoss(Remedy):
    """Add the gradient of ``value * mean(log(Z)**2)`` to every training cross-entropy.

    Args:
        value: weight of the term, above 0. Default 1e-4.
    """

    name = "z_loss"
    default = 1e-4
    values = Values(above=0.0)

    def cross_entropy(self, call: Callable[..., Tensor], input: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        """Compute the loss with the extra gradient; losses that need no gradient are left alone."""
        loss = call(input, target, **kwargs)
        if not (torch.is_grad_enabled() and input.requires_grad):
            return loss
        term = (self.value * _squared_log_z(input, target, **kwargs)).to(loss.dtype)
        return loss + (term - term.detach())  # the value of the loss is unchanged, its gradient is not

    def code(self) -> str:
        """Return the term to add."""
        return (
            "# in the loop, instead of loss = F.cross_entropy(logits, targets)\n"
            "log_z = torch.logsumexp(logits, dim=-1)  # over the classes\n"
            "kept = targets != -100  # ignored targets do not count\n"
            f"loss = F.cross_entropy(logits, targets) + {self.value!r} * log_z[kept].square().mean()\n"
        )


def _squared_log_z(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    size_average: bool | None = None,
    reduce: bool | None = None,
    **_: Any,
) -> Tensor:
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    work = input.to(torch.promote_types(input.dtype, torch.float32))
    squares = torch.logsumexp(work, dim=0 if input.dim() == 1 else 1).square()
    if target.is_floating_point():  # class probabilities: every position counts
        return {"none": squares, "sum": squares.sum(), "mean": squares.mean()}[reduction]
    kept = target != ignore_index
    squares = torch.where(kept, squares, 0.0)
    if reduction == "none":
        return squares
    return squares.sum() if reduction == "sum" else squares.sum() / kept.sum().clamp(min=1)
