r"""Normalise queries and keys before their product.

## What it does
Gives every head's query and key mean 0 and variance 1 before ``scaled_dot_product_attention`` multiplies them, and
multiplies the product by ``VALUE``, 1 by default. A logit then stays within ``VALUE`` times the root of the head's
size, whatever the weights grow to. There are no learned gains, so that the optimizer's parameters stay as they are:
this is what qk-norm begins as.

## When it helps
Against ``attention_logit_growth``, from the first step on: a logit is quadratic in the weights of queries and keys,
and a normalised one does not depend on their size at all. ``poise preflight --remedy qk_norm`` says which learning
rates are stable with it.

## What it costs
A pass over queries and keys. A model that was trained without it changes at once: applied in the middle of a run, it is
a jump, and ``logit_soft_cap`` changes the model less. Attention whose softmax is written by hand is not reached: if a
script has no other, the remedy fails and the report says so. The watch goes on to record logits as the script computes
them, before the norm.

## Making it permanent
Use ``poise.nn.QKNorm`` or ``poise.nn.add_qk_norm(model, example_input)``, whose gains are learned, before the
optimizer is made; or the lines shown, which are the remedy itself.

## References
Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024, arXiv:2309.14322.
Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", ICML 2023, arXiv:2302.05442.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from poise.doctor.remedies.remedy import Remedy, Values

_EPS = 1e-6
_PATIENCE = 10  # steps; another optimizer of the script may step first


class QKNorm(Remedy):
    """Normalise queries and keys of every ``scaled_dot_product_attention``.

    Args:
        value: factor on the normalised logits, above 0. Default 1.
    """

    name = "qk_norm"
    default = 1.0
    values = Values(above=0.0)
    bounds_logits = True

    def __init__(self, value: float | None = None) -> None:
        super().__init__(value)
        self._reached = False
        self._steps = 0

    def attention(
        self,
        call: Callable[..., Tensor],
        query: Float[Tensor, "*batch heads time dim"],
        key: Float[Tensor, "*batch kv_heads source dim"],
        value: Float[Tensor, "*batch kv_heads source out"],
        **kwargs: Any,
    ) -> Float[Tensor, "*batch heads time out"]:
        """Attend with normalised queries and keys; same arguments as ``scaled_dot_product_attention``."""
        self._reached = True
        return call(self.value * _normalised(query), _normalised(key), value, **kwargs)

    def before_step(self, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""] | None) -> None:
        """Fail if no attention was reached: the run would count as treated and is not.

        Raises:
            RuntimeError: at the tenth step, if ``scaled_dot_product_attention`` was not called.
        """
        self._steps += 1
        if self._steps >= _PATIENCE and not self._reached:
            raise RuntimeError(
                f"no call of scaled_dot_product_attention in {_PATIENCE} steps; logit_soft_cap treats attention that "
                "is written by hand"
            )

    def code(self) -> str:
        """Return the lines that normalise queries and keys."""
        return _CODE.format(value=self.value, eps=_EPS)


def _normalised(x: Float[Tensor, "*batch heads time dim"]) -> Float[Tensor, "*batch heads time dim"]:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS).to(x.dtype)  # under autocast it returns float32


_CODE = """\
# in the attention module, before F.scaled_dot_product_attention(query, key, value, is_causal=True)
query = {value!r} * torch.nn.functional.layer_norm(query, query.shape[-1:], eps={eps!r})
key = torch.nn.functional.layer_norm(key, key.shape[-1:], eps={eps!r})
"""
