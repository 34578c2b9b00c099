"""Exchange the layer normalisations of a finished model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poise.nn.surgery import Surgery, disable_fast_path, kinds, named, replace, settings_of
from poise.nn.unified_norm import UnifiedNorm

Kind = Literal["unified", "batch", "rms"]


class ChannelLastBatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose channels are the last dimension, over all others."""

    def forward(self, input: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """Return the normalised input."""
        return super().forward(input.reshape(-1, self.num_features)).view_as(input)


def replace_norm(model: nn.Module, kind: Kind = "unified", **settings: Any) -> Surgery:
    """Exchange every layer (or RMS) normalisation over the last dimension, in place; gains and biases are kept.

    Outputs change, so train afterwards: the new norms' statistics are those of no data yet. A bias becomes zero, and is
    dropped, where the new norm has none (``"rms"``).

    Args:
        model: any module; also transformers' own RMS norms are found.
        kind: ``"unified"`` is :class:`UnifiedNorm`, ``"batch"`` batch normalisation over all positions, ``"rms"``
            ``nn.RMSNorm``.
        settings: further arguments of the new norm.

    Returns:
        What was exchanged and what was not.

    Raises:
        ValueError: if ``kind`` is unknown or the model has no such normalisation.

    References:
        Yang et al., 2022, arXiv:2208.01313.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
        >>> sorted(replace_norm(model, "unified", warmup_iters=100).changed)
        ['1']
    """
    made = {"unified": UnifiedNorm, "batch": ChannelLastBatchNorm, "rms": nn.RMSNorm}
    if kind not in made:
        raise ValueError(f"kind must be one of {tuple(made)}, got {kind!r}")
    changed, skipped = {}, {}
    for name, old in named(model, _is_norm):
        if kind == "rms" and not isinstance(old, nn.LayerNorm):
            skipped[name] = f"{type(old).__name__} is an RMS norm already"
            continue
        if len(getattr(old, "normalized_shape", (0,))) != 1:
            skipped[name] = "it is over more than the last dimension"
            continue
        weight: Any = getattr(old, "weight", None)
        bias: Any = getattr(old, "bias", None)
        shape: Any = getattr(old, "normalized_shape", None) or weight.shape
        new = made[kind](shape[0], **settings_of(old), **settings)
        with torch.no_grad():
            for target, source in ((new.weight, weight), (getattr(new, "bias", None), bias)):
                if target is not None and source is not None:
                    target.copy_(source)
        replace(model, old, new.train(old.training))
        dropped = ", bias dropped" if bias is not None and getattr(new, "bias", None) is None else ""
        changed[name] = f"{type(old).__name__} to {type(new).__name__}{dropped}"
    if not changed and not skipped:
        raise ValueError(f"model has no layer normalisation; its modules are {kinds(model)}")
    disable_fast_path(model)
    return Surgery(f"Norms replaced by {kind}", changed, skipped)


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.ndim == 1
