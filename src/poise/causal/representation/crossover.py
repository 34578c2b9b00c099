"""Crossover of hidden layers: a child takes every unit, with its weights and bias, from one of two parents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from poise.causal.representation.cohort import Cohort


def crossover(
    first: Cohort, second: Cohort, generator: torch.Generator
) -> tuple[Float[Tensor, "1 inputs units"], Float[Tensor, "1 units"]]:
    """Return hidden weights and biases of a child of two networks.

    Each unit (its column of weights and its bias together) is that of the second parent with probability 1/2.

    Args:
        first: one network.
        second: another of the same size.
        generator: of the choice, of the CPU.
    """
    take = (torch.rand(first.b.shape[-1], generator=generator) < 0.5).to(first.b.device)
    return torch.where(take, second.w, first.w), torch.where(take, second.b, first.b)


def aligned(first: Float[Tensor, "rows units"], second: Float[Tensor, "rows units"]) -> list[int]:
    """Return the order of the second network's units in which they resemble those of the first.

    Units of networks that were trained apart are in no common order. The sum of the absolute correlations of their
    values is made as large as possible.

    Args:
        first: values of the first network's units.
        second: values of the second's.
    """
    parts = [(h - h.mean(0)) / (h.std(0) + 1e-12) for h in (first, second)]
    likeness = (parts[0].T @ parts[1]).abs() / len(first)
    return [int(unit) for unit in linear_sum_assignment(likeness.cpu().numpy(), maximize=True)[1]]
