"""Normalise the queries and keys of every attention in a finished model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from poise.nn.qk_norm import Kind, QKNorm
from poise.nn.surgery import Surgery, disable_fast_path, kinds, mix_in, named, settings_of

_SDPA: Any = F.scaled_dot_product_attention


class NormalizedHeads(nn.Module):
    """An attention whose calls of ``scaled_dot_product_attention`` get normalised queries and keys."""

    qk_norm: QKNorm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the attention returns."""
        with _Normalise(self.qk_norm):
            return super().forward(*args, **kwargs)


class _Normalise(TorchFunctionMode):
    def __init__(self, norm: QKNorm) -> None:
        super().__init__()
        self.norm = norm

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA:
            query, key, value, *rest = _heads(args, kwargs)
            return func(*self.norm(query, key), value, *rest, **_without_heads(kwargs))
        return func(*args, **kwargs)


class NormalizedMultiheadAttention(nn.Module):
    """An ``nn.MultiheadAttention`` with normalised queries and keys; see its documentation for the arguments."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, if they are needed, the attention weights.

        Raises:
            RuntimeError: if ``is_causal`` is given without ``attn_mask``, for which it is only a hint.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True needs attn_mask, for which it is only a hint; got no attn_mask")
        this: Any = self
        batched, inputs = query.ndim == 3, [query, key, value]
        if not batched:
            inputs = [x[None] for x in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not this.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (this.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(inputs, *_projections(this), strict=True)
        )
        q, k = this.qk_norm(q, k)
        mask = _mask(attn_mask, key_padding_mask, q)
        dropout = this.dropout if this.training else 0.0
        weights = None
        if need_weights:
            logits = q @ k.transpose(-1, -2) * this.head_dim**-0.5
            weights = (logits if mask is None else logits + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
        else:
            out = _SDPA(q, k, v, mask, dropout)
        out = F.linear(out.transpose(1, 2).flatten(-2), this.out_proj.weight, this.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if this.batch_first else out.transpose(0, 1), weights


def add_qk_norm(model: nn.Module, example_input: Any, kind: Kind = "layer") -> Surgery:
    """Put a :class:`QKNorm` before the dot product of every attention, in place.

    ``nn.MultiheadAttention`` and every module whose forward calls ``scaled_dot_product_attention`` itself are found in
    a forward of the example: hand-written attention, timm's, transformers' with ``attn_implementation="sdpa"``. A
    module keeps its class (as a base), its parameters and their names, and gains ``qk_norm``: a state_dict from before
    loads with ``strict=False``. Norms act where the product is taken, thus after rotary embeddings. To save
    such a model, save its state_dict.

    Args:
        model: any module.
        example_input: a tensor, a tuple of arguments, or a dict of named ones.
        kind: of :class:`QKNorm`.

    Returns:
        What was changed and what was not.

    Raises:
        ValueError: if no attention is found.

    References:
        Wortsman et al., ICLR 2024, arXiv:2309.14322.
    """
    head_dims = _find_attention(model, example_input)
    attentions = dict(named(model, lambda m: "Attention" in type(m).__name__ or m in head_dims))
    changed, skipped = {}, {}
    for name, module in attentions.items():
        if isinstance(module, NormalizedHeads | NormalizedMultiheadAttention):
            skipped[name] = "it has been done already"
        elif isinstance(module, nn.MultiheadAttention):
            if module.bias_k is not None or module.add_zero_attn:
                skipped[name] = "bias_k and add_zero_attn are not supported"
                continue
            module.qk_norm = QKNorm(module.head_dim, kind).to(**settings_of(module))
            mix_in(module, NormalizedMultiheadAttention)
            changed[name] = f"{kind} norm of {module.head_dim} per head"
        elif module in head_dims:
            module.qk_norm = QKNorm(head_dims[module], kind).to(**settings_of(module))
            mix_in(module, NormalizedHeads)
            changed[name] = f"{kind} norm of {head_dims[module]} per head"
        else:
            skipped[name] = "it does not call scaled_dot_product_attention on the example"
    if not changed and not skipped:
        raise ValueError(f"model has no attention; its modules are {kinds(model)}")
    disable_fast_path(model)
    return Surgery("Queries and keys normalised", changed, skipped)


class _Find(TorchFunctionMode):
    """The innermost module that is being called when attention is, and the size of its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []
        self.head_dims: dict[nn.Module, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA and self.stack:
            self.head_dims[self.stack[-1]] = _heads(args, kwargs)[0].shape[-1]
        return func(*args, **kwargs)


def _find_attention(model: nn.Module, example: Any) -> dict[nn.Module, int]:
    find, handles, training = _Find(), [], model.training
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda m, _: find.stack.append(m)))
        handles.append(module.register_forward_hook(lambda *_: find.stack.pop() and None))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), find:
            if isinstance(example, dict):
                model(**example)
            else:
                model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    assert model.training is training
    return find.head_dims


def _heads(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]


def _without_heads(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in ("query", "key", "value")}


def _projections(module: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
    return weights, biases


def _mask(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
    """Both masks as one to add, of (batch, heads or 1, time, source) dimensions; True is masked."""
    total = None
    for mask, is_padding in ((attn_mask, False), (padding, True)):
        if mask is None:
            continue
        added = (
            torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask
        )
        if is_padding:
            added = added[:, None, None, :]
        elif added.ndim == 3:
            added = added.unflatten(0, (len(query), -1))
        total = added if total is None else total + added
    return None if total is None else total.to(query.dtype)
