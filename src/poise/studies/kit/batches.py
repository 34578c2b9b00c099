"""Batches and losses of networks that train side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


def batch_indices(seeds: Sequence[int], examples: int, steps: int, batch: int) -> Int64[Tensor, "steps nets batch"]:
    """Return examples drawn with replacement, for each network from its own seed."""
    drawn = [
        torch.randint(examples, (steps, batch), generator=torch.Generator().manual_seed(1000 + seed)) for seed in seeds
    ]
    return torch.stack(drawn, 1)


def cross_entropies(
    logits: Float[Tensor, "nets examples classes"], targets: Int64[Tensor, "*nets examples"]
) -> Float[Tensor, " nets"]:
    """Return the mean cross entropy of each network; their sum gives each its own gradient."""
    targets = targets.expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(logits.shape[:2]).mean(1)


def half_squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Return half the squared distance of outputs and targets, summed over outputs and averaged over examples."""
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(1).mean()
