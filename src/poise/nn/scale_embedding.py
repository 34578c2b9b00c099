"""Scale the token embeddings of a finished model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from poise.nn.scaled_embedding import ScaledEmbedding
from poise.nn.surgery import Surgery, kinds, matches, named, replace


def scale_embedding(
    model: nn.Module,
    scale: Literal["sqrt_dim", "unit"] | float = "unit",
    skip: tuple[str, ...] = ("wpe", "*pos*"),
) -> Surgery:
    """Exchange every ``nn.Embedding`` for a :class:`ScaledEmbedding` of the same weights, in place.

    A head that shares the weights still uses the unscaled ones, and a state_dict from before still loads.

    Args:
        model: any module.
        scale: ``"unit"`` divides by the weights' present standard deviation, ``"sqrt_dim"`` multiplies by the root of
            the size; or the factor.
        skip: names (or last parts, or patterns) to leave alone, by default positions: they add to the same stream.

    Returns:
        What was exchanged and what was not.

    Raises:
        ValueError: if the model has no embedding, ``scale`` is bad, or ``"unit"`` meets weights that are all equal.

    References:
        Takase et al., "Spike No More", COLM 2025, arXiv:2312.16903.

    Example:
        >>> model = nn.ModuleDict({"tokens": nn.Embedding(100, 16)})
        >>> scale_embedding(model, 2.0).changed
        {'tokens': 'output multiplied by 2'}
    """
    changed, skipped = {}, {}
    for name, old in named(model, lambda module: isinstance(module, nn.Embedding)):
        assert isinstance(old, nn.Embedding)
        reason = _obstacle(name, old, skip)
        if reason is not None:
            skipped[name] = reason
            continue
        factor: Literal["sqrt_dim", "unit"] | float = scale
        if scale == "unit":
            spread = old.weight.detach().double().std().item()
            if not spread > 0:
                raise ValueError(f"scale='unit' needs weights that differ, but all of {name} are equal")
            factor = 1 / spread
        new = ScaledEmbedding(
            old.num_embeddings, old.embedding_dim, factor, old.padding_idx, device=torch.device("meta")
        )
        new.weight = old.weight  # the very tensor, so that tied heads stay tied
        replace(model, old, new.train(old.training))
        changed[name] = f"output multiplied by {new.scale:.4g}"
    if not changed and not skipped:
        raise ValueError(f"model has no nn.Embedding; its modules are {kinds(model)}")
    return Surgery("Scaled embeddings", changed, skipped)


def _obstacle(name: str, embedding: nn.Embedding, skip: tuple[str, ...]) -> str | None:
    if matches(name, skip):
        return "its name is among those to skip"
    if type(embedding) is not nn.Embedding:
        return f"it is a {type(embedding).__name__}, which may scale its output already"
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return "max_norm, scale_grad_by_freq and sparse have no counterpart"
    return None if embedding.weight.requires_grad else "it is frozen"
