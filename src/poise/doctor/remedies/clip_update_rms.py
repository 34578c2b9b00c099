r"""Shorten the steps of tensors with a stale second moment.

## What it does
Update clipping, as in StableAdamW. After each step of an Adam-like optimizer it measures, per parameter tensor,
:math:`\mathrm{RMS}_t = \sqrt{\mathrm{mean}(g_t^2 / \max(\hat v_t, \epsilon^2))}` with the bias-corrected second moment
that already holds this gradient, and scales the whole change of the tensor by :math:`1/\max(1, \mathrm{RMS}_t / c)`.
That is a step with learning rate :math:`\eta / \max(1, \mathrm{RMS}_t / c)`, decoupled weight decay included. ``VALUE``
is :math:`c`, 1 by default, as in the paper.

## When it helps
Against ``stale_second_moment``: gradients were small for a while, the second moment decayed, then a large gradient
meets a small denominator and the update is many times too long. The loss spikes 1 to 8 steps later.

## What it costs
A copy of the parameters during the step and a few passes over the gradients. Embeddings of rare tokens have a large
:math:`\mathrm{RMS}_t` in healthy runs too, and learn more slowly under this remedy. Optimizers without a second moment
are left alone, which is noted.

## Making it permanent
Replace ``optimizer.step()`` by the function shown, or use an optimizer with update clipping (StableAdamW).

## References
Wortsman et al., "Stable and low-precision training for large-scale vision-language models", 2023, arXiv:2304.13013.
Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018, arXiv:1804.04235.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from poise.doctor.remedies.remedy import Remedy, Values


class ClipUpdateRMS(Remedy):
    """Scale each tensor's update by ``1 / max(1, RMS_t / value)``.

    Args:
        value: largest root mean square of ``g / sqrt(v)`` that passes unchanged, above 0. Default 1.0.
    """

    name = "clip_update_rms"
    default = 1.0
    values = Values(above=0.0)

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._before: WeakKeyDictionary[Optimizer, list[Tensor | None]] = WeakKeyDictionary()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, loss: Tensor | None) -> None:
        """Keep a copy of the parameters that will be stepped."""
        self._before[optimizer] = [
            None if p.grad is None else p.detach().clone() for group in optimizer.param_groups for p in group["params"]
        ]

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Shorten the change of every tensor whose update was too long."""
        pairs = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        stepped = clipped = 0
        for (p, group), before in zip(pairs, self._before.pop(optimizer, []), strict=False):
            if before is None or p.grad is None:
                continue
            stepped += 1
            state = optimizer.state.get(p, {})
            if p.grad.is_sparse or "exp_avg_sq" not in state or "step" not in state:
                continue
            clipped += 1
            factor = (self.value / _update_rms(p.grad, before, state, group)).clamp(max=1.0)
            p.copy_(torch.lerp(before, p, factor.to(p.dtype)))  # exactly p where the factor is 1
        if stepped and not clipped:
            self.note(f"{type(optimizer).__name__} keeps no second moment (exp_avg_sq), so no update was clipped")

    def code(self) -> str:
        """Return a function that takes the place of ``optimizer.step()``."""
        return _CODE.format(value=self.value)


def _update_rms(grad: Tensor, before: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Float[Tensor, ""]:
    if group.get("weight_decay") and group.get("decoupled_weight_decay") is False:
        grad = grad + group["weight_decay"] * before  # Adam's coupled decay is part of the gradient
    work = torch.promote_types(grad.dtype, torch.float32)
    steps = torch.as_tensor(state["step"], dtype=work)  # torch counts in float32, too coarse for float64 parameters
    v_hat = state["exp_avg_sq"] / (1.0 - group["betas"][1] ** steps)
    rms = (grad.to(work).square() / v_hat.to(work).clamp(min=_floor(group["eps"], work))).mean().sqrt()
    return rms.clamp(min=torch.finfo(work).tiny)


def _floor(eps: float, dtype: torch.dtype) -> float:
    # With eps = 0 an unused coordinate would be 0 / 0; its term of the mean is 0.
    return max(float(eps) ** 2, torch.finfo(dtype).tiny)


_CODE = """\
# once
def step_with_clipped_updates(optimizer, clip={value!r}):
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    before = [p.detach().clone() for p, _ in parameters]
    optimizer.step()
    with torch.no_grad():
        for (p, group), old in zip(parameters, before):
            state = optimizer.state[p]
            v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            rms = (p.grad.square() / v.clamp(min=group["eps"] ** 2)).mean().sqrt()
            p.copy_(torch.lerp(old, p, (clip / rms).clamp(max=1.0)))


# in the loop, instead of optimizer.step()
step_with_clipped_updates(optimizer)
"""
