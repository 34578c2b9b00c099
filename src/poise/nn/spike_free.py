"""Initialisation of a pre-norm Transformer that trains without spikes: small sub-layers, large embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from poise.nn.surgery import RESIDUAL_OUT, Surgery, block_lists, is_conv1d_of_transformers, kinds, matches, named

Embedding = Literal["scaled", "unit", "direct"]


@dataclass(frozen=True)
class _Change:
    before: float
    after: float
    rule: str

    def __str__(self) -> str:
        return f"std {self.before:.4g} to {self.after:.4g} ({self.rule})"


def small_init_std(d_model: int) -> float:
    r"""Return the small initial standard deviation :math:`\sqrt{2 / (5 d)}`.

    Args:
        d_model: width of the model.

    Raises:
        ValueError: if ``d_model`` is below 1.

    References:
        Nguyen and Salazar, "Transformers without Tears", IWSLT 2019, arXiv:1910.05895.

    Example:
        >>> round(small_init_std(1024), 6)
        0.019764
    """
    if d_model < 1:
        raise ValueError(f"d_model must be at least 1, got {d_model!r}")
    return math.sqrt(2 / (5 * d_model))


@torch.no_grad()
def spike_free_(
    model: nn.Module,
    d_model: int | None = None,
    n_layers: int | None = None,
    out_proj: tuple[str, ...] = RESIDUAL_OUT,
    embedding: Embedding | None = "direct",
    generator: torch.Generator | None = None,
) -> Surgery:
    r"""Initialise the weights of a pre-norm Transformer again: small sub-layers, and embeddings that are not, in place.

    All matrices are normal with :math:`\sigma = \sqrt{2/(5d)}`, those that end a residual branch with
    :math:`\sigma / \sqrt{2N}`, biases zero. Embeddings, which the gradient of the first blocks is divided by:
    ``"scaled"`` and ``"unit"`` draw them with :math:`\sigma` for a :class:`ScaledEmbedding` of factor :math:`\sqrt d`
    or :math:`1/\sigma` (see :func:`scale_embedding`; without it they stay small), ``"direct"`` draws them with standard
    deviation 1: exclude them from weight decay. None leaves them alone.

    Args:
        model: a Transformer with a list of blocks.
        d_model: width; by default the embeddings'.
        n_layers: N, the number of blocks; by default the length of the longest list of blocks.
        out_proj: names (or last parts, or patterns) of maps that end a branch.
        embedding: what to do with ``nn.Embedding``.
        generator: of random numbers, torch's by default.

    Returns:
        The standard deviation before and after, and the rule, by parameter.

    Raises:
        ValueError: if sizes cannot be inferred, or ``"direct"`` is used with a head that shares the embeddings'
            weights: its logits would begin with a standard deviation of the root of ``d_model``.

    References:
        Takase et al., "Spike No More", COLM 2025, arXiv:2312.16903.
    """
    if embedding not in ("scaled", "unit", "direct", None):
        raise ValueError(f"embedding must be 'scaled', 'unit', 'direct' or None, got {embedding!r}")
    embeddings = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    width = d_model if d_model is not None else max((m.weight.shape[1] for m in embeddings.values()), default=0)
    depth = n_layers if n_layers is not None else max(block_lists(model).values(), default=0)
    if width < 1 or depth < 1:
        raise ValueError(
            f"d_model and n_layers must be at least 1 and are not to be inferred from {kinds(model)}: "
            f"got {d_model!r} and {n_layers!r}"
        )
    sigma = small_init_std(width)
    tied = {id(module.weight) for module in embeddings.values()}
    matrices = _matrices(model)
    skipped = {name: "it is tied to an embedding" for name, weight in matrices.items() if id(weight) in tied}
    if skipped and embedding == "direct":
        names = ", ".join(skipped)
        raise ValueError(f"{names} is tied to an embedding; use embedding='unit' with scale_embedding, or untie it")
    changed: dict[str, str] = {}
    for name, weight in matrices.items():
        if name in skipped:
            continue
        end = matches(name.removesuffix(".weight"), out_proj)
        std = sigma / math.sqrt(2 * depth) if end else sigma
        changed[name] = str(_draw(weight, std, "sigma / sqrt(2 N)" if end else "sigma", generator))
    for name, module in embeddings.items():
        key = f"{name}.weight"
        if embedding is None or not module.weight.requires_grad:
            skipped[key] = "embeddings are to be left alone" if embedding is None else "it is frozen"
            continue
        change = _draw(module.weight, 1.0 if embedding == "direct" else sigma, f"embedding, {embedding}", generator)
        if module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        changed[key] = str(change)
    for name, linear in named(model, _is_map):
        bias = getattr(linear, "bias", None)
        if bias is not None:
            bias.zero_()
            changed[f"{name}.bias"] = "zero"
    return Surgery("Spike-free initialisation", changed, skipped)


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d_of_transformers(module)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """Weights of linear maps, and those that torch's attention keeps itself."""
    found: dict[str, Tensor] = {
        f"{name}.weight": module.get_parameter("weight") for name, module in named(model, _is_map)
    }
    for name, module in named(model, lambda m: isinstance(m, nn.MultiheadAttention)):
        for key, value in module.named_parameters(recurse=False):
            if value.ndim == 2:
                found[f"{name}.{key}"] = value
    return found


def _draw(weight: Tensor, std: float, rule: str, generator: torch.Generator | None) -> _Change:
    before = weight.double().std().item()
    weight.normal_(0, std, generator=generator)
    return _Change(before, weight.double().std().item(), rule)
