"""Param groups: which parameters are decayed, and which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
UNDECAYED_NAMES = (
    "bias", "bias_*", "*_bias", "*_bias_table", "*_token", "*_tokens", "register*", "class_embed*", "*pos_embed*",
    "*position*_embed*",
)  # fmt: skip
"""Shell patterns of a parameter's own name (the last part of its full name) that has no decay, whatever its shape."""


def param_groups(model: nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Divide the parameters of a model by patterns of their names.

    A parameter goes to the first pattern that fits it; those that none fits form the last group, which has the
    optimizer's defaults. Shared (tied) parameters are taken once, under their first name; frozen ones not at all.

    Args:
        model: the model.
        settings: for each shell pattern, for example ``"*.alpha"``, the settings of its group.

    Returns:
        Param groups for a ``torch.optim.Optimizer``, each with ``"params"`` and their ``"names"``; empty ones left out.

    Raises:
        ValueError: if a pattern fits no parameter.

    Example:
        >>> groups = param_groups(model, {"*.alpha": {"lr": 1e-2}, "head.*": {"weight_decay": 0.0}})
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    groups: dict[str | None, dict[str, Any]] = {
        pattern: {"params": [], "names": [], **values} for pattern, values in settings.items()
    }
    groups[None] = {"params": [], "names": []}
    _require_matches(model, settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = next((pattern for pattern in settings if fnmatchcase(name, pattern)), None)
            groups[key]["params"].append(parameter)
            groups[key]["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def decay_groups(
    model: nn.Module, weight_decay: float, exclude: Sequence[str] = (), embeddings: bool = True
) -> list[dict[str, Any]]:
    """Divide the parameters of a model into those with weight decay and those without.

    Not decayed are

    - parameters of fewer than two dimensions: biases, gains, scale factors;
    - parameters of normalisation layers, found by their class, any class whose name ends in ``Norm`` among them;
    - biases of any shape, class, mask and register tokens and position embeddings that are parameters by themselves,
      found by their names (:data:`UNDECAYED_NAMES`). Those in an ``nn.Embedding`` are embeddings;
    - what ``exclude`` names.

    Decay pulls such parameters to 0, which changes the function; for matrices in front of a normalisation decay only
    sets the effective learning rate. ``"names"`` of the groups holds the parameters of each group.

    Args:
        model: the model.
        weight_decay: decay of the first group.
        exclude: shell patterns of further names without decay, for example ``"*.alpha"``.
        embeddings: whether ``nn.Embedding`` weights are decayed.

    Returns:
        Two param groups (one if the other is empty) with ``"params"``, their ``"names"`` and ``"weight_decay"``. Tied
        parameters are taken once: without decay if one of their places is; frozen ones not at all.

    Raises:
        ValueError: if ``weight_decay`` is negative or not finite, a pattern of ``exclude`` fits no parameter, or no
            parameter is trainable.

    References:
        D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", NeurIPS 2024, arXiv:2310.04415.

    Example:
        >>> optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3)
    """
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay}")
    _require_matches(model, exclude)
    undecayed = _undecayed(model, exclude, embeddings)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model has no parameter that requires a gradient")
    groups = []
    for decay, chosen in ((weight_decay, False), (0.0, True)):
        members = [(name, p) for name, p in named if (id(p) in undecayed) is chosen]
        if members:
            names, params = [name for name, _ in members], [p for _, p in members]
            groups.append({"params": params, "names": names, "weight_decay": decay})
    return groups


def _undecayed(model: nn.Module, exclude: Sequence[str], embeddings: bool) -> set[int]:
    """Identities of the parameters without decay; a tied one is met at every place it has."""
    found = set()
    for path, module in model.named_modules():
        norm = isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")
        embedding = isinstance(module, nn.Embedding | nn.EmbeddingBag) and not embeddings
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            named = any(fnmatchcase(name, pattern) for pattern in UNDECAYED_NAMES)
            excluded = any(fnmatchcase(full, pattern) for pattern in exclude)
            if parameter.ndim < 2 or norm or embedding or named or excluded:
                found.add(id(parameter))
    return found


def _require_matches(model: nn.Module, patterns: Mapping[str, Any] | Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} fits no parameter; the model has {', '.join(names[:5])}, ...")
