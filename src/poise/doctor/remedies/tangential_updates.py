r"""Keep scale-invariant weights from growing.

## What it does
Their steps lose the part along the weights, as in AdamP and SGDP. A weight that a normalisation follows has a gradient
orthogonal to it. Where :math:`|\cos(w, g)| < \delta / \sqrt{\dim w}` holds, for every output channel of a matrix or
kernel or else for it as a whole, the part of the step along the weight, per channel or as a whole, is taken back after
the step. Decoupled weight decay (AdamW) stays as it was; decay that is part of the gradient goes with the rest.
``VALUE`` is :math:`\delta`, 0.1 by default. All other parameters move as before.

## When it helps
Against ``norm_growth``: momentum keeps pushing along the weights, their norm grows to no effect, and the direction,
which is all that matters, moves less and less.

## What it costs
A copy of the matrices during the step and a few inner products. Steps no longer shrink as weights grow: a run that
depended on this hidden decay of the learning rate needs a schedule.

## Making it permanent
Use ``poise.optim.AdamP`` or ``poise.optim.SGDP``, or replace ``optimizer.step()`` by the function shown.

## References
Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", 2021,
arXiv:2006.08217.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

from poise.doctor.remedies.remedy import Remedy, Values
from poise.optim.geometry import cosine, radial


@dataclass(slots=True)
class _Before:
    parameter: Tensor
    weight: Tensor
    decay: float | Tensor  # fraction of the weight that decoupled decay removes in this step


class TangentialUpdates(Remedy):
    """Take the radial part out of the steps of scale-invariant weights.

    Args:
        value: a weight counts as invariant while ``|cos(w, g)| < value / sqrt(dim)``, above 0. Default 0.1.
    """

    name = "tangential_updates"
    default = 0.1
    values = Values(above=0.0)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._before: WeakKeyDictionary[Optimizer, list[_Before]] = WeakKeyDictionary()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Keep a copy of the matrices that will be stepped."""
        self._before[optimizer] = [
            _Before(p, p.detach().clone(), _decoupled_decay(optimizer, group))
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and not p.grad.is_sparse and p.dim() > 1 and p.is_floating_point()
        ]

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Take back what moved scale-invariant weights along themselves."""
        for kept in self._before.pop(optimizer, []):
            if kept.parameter.grad is not None:
                step = kept.parameter.detach() - kept.weight + kept.decay * kept.weight
                kept.parameter.sub_(self._superfluous(kept.weight, kept.parameter.grad, step))

    def _superfluous(self, w: Float[Tensor, "..."], g: Float[Tensor, "..."], step: Float[Tensor, "..."]) -> Tensor:
        channels = (cosine(w, g, "channel").abs().max() * (w.numel() / w.shape[0]) ** 0.5) < self.value
        whole = (cosine(w, g).abs() * w.numel() ** 0.5) < self.value
        return torch.where(channels, radial(w, step, "channel"), torch.where(whole, radial(w, step), 0.0)).to(w.dtype)

    def code(self) -> str:
        """Return a function that takes the place of ``optimizer.step()``."""
        return _CODE.format(value=self.value)


def _decoupled_decay(optimizer: Optimizer, group: dict[str, Any]) -> float | Tensor:
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    return group["lr"] * group.get("weight_decay", 0.0) if decoupled else 0.0


_CODE = """\
# once
def step_tangentially(optimizer, delta={value!r}):
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    parameters = [(p, group) for p, group in parameters if p.grad is not None and p.dim() > 1]
    before = [p.detach().clone() for p, _ in parameters]
    optimizer.step()
    with torch.no_grad():
        for (p, group), w in zip(parameters, before):
            decay = group["lr"] * group["weight_decay"] if group.get("decoupled_weight_decay") else 0.0
            step = p - w + decay * w
            for rows in (w.flatten(1), w.reshape(1, -1)):  # by output channel, else as a whole
                g = p.grad.reshape(rows.shape)
                cosine = torch.nn.functional.cosine_similarity(rows, g, dim=1, eps=1e-30).abs().max()
                if cosine < delta / rows.shape[1] ** 0.5:
                    radial = (rows * step.reshape(rows.shape)).sum(1) / rows.square().sum(1).clamp(min=1e-30)
                    p -= (radial[:, None] * rows).reshape(p.shape)
                    break


# in the loop, instead of optimizer.step()
step_tangentially(optimizer)
"""
