"""The residual stream: its size at the start, and how much each branch adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poise.preflight.signal_propagation.scalar_products import ScalarProducts


@dataclass(frozen=True, slots=True)
class ResidualSum:
    """A sum of a shortcut and a branch that was computed from it.

    Attributes:
        name: of the module that adds them.
        shortcut: root mean square of the shortcut's entries.
        branch: of the branch's entries, with the factor that the sum gives them.
        gain: factor on the shortcut, 1 if it is the identity.
    """

    name: str
    shortcut: float
    branch: float
    gain: float = 1.0

    @property
    def growth(self) -> float:
        """Factor on the mean square of the stream, if branch and shortcut are uncorrelated."""
        return 1 + (self.branch / self.shortcut) ** 2 if self.shortcut else float("inf")


def residual_sum(
    name: str, a: Tensor, b: Tensor, factor: float = 1.0, products: ScalarProducts | None = None
) -> ResidualSum | None:
    """Return the residual sum that ``a + factor * b`` is, or ``None`` if it is another kind of sum.

    One operand is the shortcut if the other was computed from it by something with parameters. Sums of embeddings,
    biases and masks are not of that kind, nor is the polynomial inside a GELU.

    Args:
        name: of the module that adds.
        a: first operand.
        b: second operand, of the same shape.
        factor: on ``b``.
        products: with numbers so far: a shortcut may be a multiple of what the branch was computed from.
    """
    if a.shape != b.shape or a.dim() < 2 or a.grad_fn is None or b.grad_fn is None or a is b:
        return None
    if computed_from(b, a):
        return ResidualSum(name, rms(a), rms(b) * abs(factor))
    if computed_from(a, b):
        return ResidualSum(name, rms(b) * abs(factor), rms(a), abs(factor))
    scaled_a, scaled_b = (None, None) if products is None else (products.of(a), products.of(b))
    if scaled_a is not None and _is_ancestor(scaled_a.source, b.grad_fn):
        return ResidualSum(name, rms(a), rms(b) * abs(factor), abs(scaled_a.factor))
    if scaled_b is not None and _is_ancestor(scaled_b.source, a.grad_fn):
        return ResidualSum(name, rms(b) * abs(factor), rms(a), abs(scaled_b.factor * factor))
    return None


def computed_from(late: Tensor, early: Tensor) -> bool:
    """Whether a tensor was computed from an earlier one with the help of parameters, by autograd's graph."""
    return _is_ancestor(early.grad_fn, late.grad_fn)


def _is_ancestor(goal: Any, start: Any) -> bool:
    """Whether a node of autograd's graph was computed from another one with the help of parameters."""
    oldest = goal._sequence_nr()
    if start._sequence_nr() <= oldest:
        return False
    seen, front, reached, parameters = {start}, [start], False, False
    while front:
        for node, _ in front.pop().next_functions:
            if node is None or node in seen:
                continue
            seen.add(node)
            if node is goal:
                reached = True
            elif node.name().endswith("AccumulateGrad"):
                parameters = True
            elif node._sequence_nr() > oldest:  # what is older cannot have been computed from it
                front.append(node)
    return reached and parameters


def is_embedding(module: nn.Module) -> bool:
    """Whether a module reads vectors from a table."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def rms(tensor: Tensor) -> float:
    """Return the root mean square of the entries, without overflow where that fits into float64."""
    values = tensor.detach()
    norm = torch.linalg.vector_norm(values, dtype=torch.float64)
    return float(norm) / max(values.numel(), 1) ** 0.5
