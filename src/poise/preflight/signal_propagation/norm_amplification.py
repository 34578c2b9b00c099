r"""How much a layer normalisation amplifies gradients: the derivative of :math:`(x - \mu)/\sigma` is one over sigma."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
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
        by_position: the amplification at every position of a sequence, the median over the examples whose features are
            not all equal there; empty where examples have one vector each.
    """

    name: str
    std: float
    amplification: float
    degenerate: float
    by_position: tuple[float, ...] = ()

    @property
    def typical(self) -> float:
        """The amplification at the median position; over all tokens where there are no positions."""
        known = [value for value in self.by_position if not math.isnan(value)]
        return median(known) if known else self.amplification


def is_norm_over_features(module: nn.Module) -> bool:
    """Whether a module is a layer norm or an RMS norm, of torch or of a library that writes its own."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


def norm_input(name: str, norm: nn.Module, x: Tensor, examples: int = 1) -> NormInput:
    """Measure the input of a normalisation.

    Args:
        name: of the normalisation.
        norm: a layer norm or an RMS norm.
        x: its input; the last dimensions are the features.
        examples: of the batch: how many vectors each position has.

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
    is_flat = std == 0
    by_position = _by_position(inverse.masked_fill(is_flat, math.nan), x, examples)
    return NormInput(name, float(std.mean()), float(inverse.mean()), float(is_flat.double().mean()), by_position)


def _by_position(values: Tensor, x: Tensor, examples: int) -> tuple[float, ...]:
    """Return the median over examples at every position; what is not a number is left out."""
    if x.dim() < 2 or examples < 1 or values.numel() % examples or values.numel() == examples:
        return ()
    is_time_first = x.dim() == 3 and x.shape[0] != examples and x.shape[1] == examples
    rows = values.reshape(-1, examples).T if is_time_first else values.reshape(examples, -1)
    return tuple(rows.nanmedian(dim=0).values.tolist())


def _eps(norm: nn.Module, dtype: torch.dtype) -> float:
    for key in ("eps", "variance_epsilon"):
        value = getattr(norm, key, None)
        if isinstance(value, float):
            return value
    return torch.finfo(dtype).eps  # what nn.RMSNorm takes for None
