r"""Bound attention logits smoothly.

## What it does
Replaces every attention logit :math:`\ell` by :math:`c \tanh(\ell / c)` before the mask is applied, in
``scaled_dot_product_attention`` and in a softmax that a script wrote by hand and poise recognises as attention. There,
entries that are masked already (minus infinity, or below -5000, such as -1e4 or -1e9) stay masked. ``VALUE`` is
:math:`c`, 30 by default.

## When it helps
Against ``attention_logit_growth``: queries and keys grow together, the softmax saturates to one-hot, its gradient
vanishes, and the loss breaks. A bounded logit cannot saturate the softmax completely, and :math:`\tanh` keeps its
gradient alive near the bound. It can be applied to a model that exists already; for a new one, normalising queries and
keys (qk-norm) is the better remedy.

## What it costs
Fused attention kernels are bypassed: memory and time grow with the square of the sequence length. Logits near or above
the bound are changed, so a trained model with large logits shifts a little when the cap is put on.

## Making it permanent
Compute the attention as shown, or give the same line to ``flex_attention`` as its ``score_mod``, which is fused.

## References
Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024, arXiv:2408.00118.
Bello et al., "Neural Combinatorial Optimization with Reinforcement Learning", 2016, arXiv:1611.09940.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.doctor.remedies.remedy import Remedy, Values

# Hand-written masks add or fill -1e4 and beyond; half of that leaves room for the logit they were added to.
MASKED_BELOW = -5e3


class LogitSoftCap(Remedy):
    """Replace each attention logit by ``value * tanh(logit / value)``.

    Args:
        value: bound of the logits, above 0. Default 30.
    """

    name = "logit_soft_cap"
    default = 30.0
    values = Values(above=0.0)

    def attention(
        self,
        call: Callable[..., Tensor],
        query: Float[Tensor, "*batch heads time dim"],
        key: Float[Tensor, "*batch kv_heads source dim"],
        value: Float[Tensor, "*batch kv_heads source out"],
        **kwargs: Any,
    ) -> Float[Tensor, "*batch heads time out"]:
        """Compute the attention with capped logits; same arguments as ``scaled_dot_product_attention``."""
        return soft_capped_attention(query, key, value, self.value, **kwargs)

    def attention_softmax(
        self, call: Callable[..., Tensor], logits: Tensor, dim: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Cap the logits that are not masked, then call the script's own softmax."""
        return call(torch.where(logits <= MASKED_BELOW, logits, self._cap(logits)), dim, *args, **kwargs)

    def _cap(self, logits: Tensor) -> Tensor:
        return self.value * torch.tanh(logits / self.value)

    def code(self) -> str:
        """Return attention with capped logits."""
        return _CODE.format(value=self.value)


def soft_capped_attention(
    query: Float[Tensor, "*batch heads time dim"],
    key: Float[Tensor, "*batch kv_heads source dim"],
    value: Float[Tensor, "*batch kv_heads source out"],
    cap: float,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch heads time out"]:
    """Scaled dot-product attention with logits ``cap * tanh(logit / cap)``, bounded before the mask.

    Rows that are masked altogether give 0, as in ``torch.nn.functional.scaled_dot_product_attention``.

    References:
        Gemma Team, 2024, arXiv:2408.00118, section 2.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scale = 1.0 / math.sqrt(query.size(-1)) if scale is None else scale
    logits = query @ key.transpose(-2, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    logits = cap * torch.tanh(logits / cap)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    nothing_visible = (logits == -math.inf).all(-1, keepdim=True)
    # `torch.special.softmax`, because `torch.softmax` is hooked, and this is not the script's own softmax.
    weights = torch.special.softmax(logits.masked_fill(nothing_visible, 0.0), dim=-1)
    weights = weights.masked_fill(nothing_visible, 0.0).to(value.dtype)
    return torch.dropout(weights, dropout_p, True) @ value


_CODE = """\
# in the attention module, instead of F.scaled_dot_product_attention(query, key, value, is_causal=True)
logits = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
logits = {value!r} * torch.tanh(logits / {value!r})  # before the mask
visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
y = logits.masked_fill(~visible, float("-inf")).softmax(dim=-1) @ value
"""
