"""Exchange the linear maps of a Transformer's blocks for scale-distribution decoupled ones."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from poise.nn.sdd_linear import SDDLinear
from poise.nn.surgery import (
    RESIDUAL_OUT,
    Surgery,
    block_lists,
    disable_fast_path,
    is_conv1d_of_transformers,
    kinds,
    matches,
    named,
    replace,
    settings_of,
)

_FUSED = ("qkv", "c_attn", "in_proj", "Wqkv")


def apply_sdd(
    model: nn.Module,
    residual_out: tuple[str, ...] = RESIDUAL_OUT,
    n_layers: int | None = None,
    skip: tuple[str, ...] = ("lm_head", "embed*"),
) -> Surgery:
    r"""Exchange every linear map inside the blocks for an :class:`SDDLinear` with new weights, in place.

    ``alpha`` is :math:`1/\sqrt{L}` where a residual branch ends and 1 elsewhere; V is normal with standard deviation
    :math:`1/\sqrt{2.5 d}`. Biases are dropped. A fused map of queries, keys and values has a norm for each. The
    function is a new one: this is a way to begin training, not to go on.

    Args:
        model: with a list of equal blocks.
        residual_out: names (or last parts, or patterns) of maps that end a residual branch.
        n_layers: L, the number of blocks; by default the length of the longest list of modules of one type.
        skip: names of maps to leave alone.

    Returns:
        What was exchanged, with its initial values, and what was not.

    Raises:
        ValueError: if there is no linear map in the blocks, the blocks are not found, or a map shares its weights.

    References:
        Wang et al., 2025, arXiv:2502.15499.
    """
    blocks = block_lists(model)
    if not blocks and n_layers is None:
        raise ValueError("n_layers cannot be inferred: no list of modules of one type was found; pass n_layers")
    depth = n_layers if n_layers is not None else max(blocks.values())
    if depth < 1:
        raise ValueError(f"n_layers must be at least 1, got {n_layers!r}")
    found = dict(named(model, lambda module: isinstance(module, nn.Linear) or is_conv1d_of_transformers(module)))
    changed, skipped = {}, {}
    for name, old in found.items():
        reason = _obstacle(model, name, tuple(blocks), skip)
        if reason is not None:
            skipped[name] = reason
            continue
        _refuse_tied(model, name, old)
        inputs, outputs = _sizes(old)
        ends = matches(name, residual_out)
        groups = 3 if matches(name, _FUSED) else 1
        if groups == 3 and outputs != 3 * inputs:
            skipped[name] = "a fused map whose parts are not of one size; split it into three"
            continue
        alpha = 1 / math.sqrt(depth) if ends else 1.0
        width = min(inputs, outputs) if ends else inputs
        std = 1 / math.sqrt(2.5 * width)
        new = SDDLinear(inputs, outputs, alpha_init=alpha, std=std, groups=groups, **settings_of(old))
        replace(model, old, new.train(old.training))
        dropped = "" if getattr(old, "bias", None) is None else ", bias dropped"
        changed[name] = f"SDDLinear, alpha {alpha:.4g}, std {std:.4g}, groups {groups}{dropped}"
    if not changed:
        raise ValueError(f"no linear map to exchange; the modules are {kinds(model)}; left alone: {skipped}")
    disable_fast_path(model)
    return Surgery("Scale-distribution decoupled maps", changed, skipped)


def _obstacle(model: nn.Module, name: str, prefixes: tuple[str, ...], skip: tuple[str, ...]) -> str | None:
    if prefixes and not name.startswith(prefixes):
        return "it is outside the blocks"
    if matches(name, skip):
        return "its name is among those to skip"
    parent: Any = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads the weights itself and does not call its maps"
    return None


def _sizes(module: Any) -> tuple[int, int]:
    return (module.nx, module.nf) if is_conv1d_of_transformers(module) else (module.in_features, module.out_features)


def _refuse_tied(model: nn.Module, name: str, module: nn.Module) -> None:
    names = [key for key, value in model.named_parameters(remove_duplicate=False) if value is module.weight]
    if len(names) > 1:
        raise ValueError(f"{name} shares its weights: {', '.join(names)} are one tensor; untie them or skip {name}")
