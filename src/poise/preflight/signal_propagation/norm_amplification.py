r"""How much a layer normalisation amplifies gradients: the derivative of :math:`(x - \mu)/\sigma` is one over sigma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class NormInput:
    r"""The input of a normalisation over features.

    Attributes:
        name: of the normalisation.
        std: mean over tokens of the standard deviation of a token's features (of the root mean square, where the norm
            does not subtract the mean).
        amplification: mean over tokens of the spectral norm of the normalisation's derivative without its gain,
            :math:`1 / \sqrt{\sigma^2 + \epsilon}`.
        degenerate: fraction of tokens whose features are all equal.
    """

    name: str
    std: float
    amplification: float
    degenerate: float


def is_norm_over_features(module: nn.Module) -> bool:
    """Whether a module is a layer norm or an RMS norm, of torch or of a library that writes its own."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


def norm_input(name: str, norm: nn.Module, x: Tensor) -> NormInput:
    """Measure the input of a normalisation.

    Args:
        name: of the normalisation.
        norm: a layer norm or an RMS norm.
        x: its input; the last dimensions are the features.

    References:
        Takase et al., "Spike No More", COLM 2025, arXiv:2312.16903.
    """
    shape: Any = getattr(norm, "normalized_shape", (x.shape[-1],))
    tokens = x.detach().double().flatten(-len(shape)).reshape(-1, torch.Size(shape).numel())
    if isinstance(norm, nn.LayerNorm):
        tokens = tokens - tokens.mean(1, keepdim=True)
    variance = tokens.square().mean(1)
    inverse = (variance + _eps(norm, x.dtype)).rsqrt()
    std = variance.sqrt()
    return NormInput(name, float(std.mean()), float(inverse.mean()), float((std == 0).double().mean()))


def _eps(norm: nn.Module, dtype: torch.dtype) -> float:
    for key in ("eps", "variance_epsilon"):
        value = getattr(norm, key, None)
        if isinstance(value, float):
            return value
    return torch.finfo(dtype).eps  # what nn.RMSNorm takes for None
