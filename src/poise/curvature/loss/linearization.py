"""Products with the Jacobian of outputs in the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from poise.curvature.loss.autograd_graph import check_twice_differentiable
from poise.curvature.loss.flat import FlatParameters

JacobianMode = Literal["auto", "retained", "rebuild"]
# A Jacobian that can be applied from both sides holds about this many times what the graph of the outputs holds.
JACOBIAN_GRAPH = 3


class Linearization:
    """The Jacobian J of some outputs in the parameters, from a graph that is kept.

    J v is computed by reverse differentiation alone: u -> J^T u is linear, and the transpose of its derivative is J.
    That works for operations without forward differentiation.

    Args:
        outputs: with the graph that led to them.
        flat: the parameters.

    Raises:
        RuntimeError: if an operation cannot be differentiated twice.
    """

    def __init__(self, outputs: Sequence[Tensor], flat: FlatParameters) -> None:
        self._outputs = list(outputs)
        self._flat = flat
        self._u = [torch.zeros_like(o, requires_grad=True) for o in self._outputs]
        transposed = torch.autograd.grad(self._outputs, flat.tensors, self._u, create_graph=True, allow_unused=True)
        self._reached = [i for i, t in enumerate(transposed) if t is not None]
        self._transposed = [t for t in transposed if t is not None]
        check_twice_differentiable(self._transposed)

    def jvp(self, v: Float[Tensor, " P"]) -> list[Tensor]:
        """Return J v, shaped like the outputs."""
        parts = self._flat.split(v)
        along = [parts[i] for i in self._reached]
        return list(torch.autograd.grad(self._transposed, self._u, along, retain_graph=True, materialize_grads=True))

    def vjp(self, u: Sequence[Tensor]) -> Float[Tensor, " P"]:
        """Return J^T u for u shaped like the outputs."""
        gradient = torch.autograd.grad(self._outputs, self._flat.tensors, u, retain_graph=True, allow_unused=True)
        return self._flat.join(gradient)


def chosen_mode(mode: JacobianMode, saved_bytes: int, max_bytes: int) -> JacobianMode:
    """Return ``"retained"`` or ``"rebuild"``.

    Args:
        mode: as requested.
        saved_bytes: what the graph of the outputs of all batches holds.
        max_bytes: most memory for what ``"auto"`` may retain.

    Raises:
        ValueError: if ``mode`` is none.
    """
    if mode not in get_args(JacobianMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(JacobianMode))}; got {mode!r}")
    if mode != "auto":
        return mode
    return "retained" if JACOBIAN_GRAPH * saved_bytes <= max_bytes else "rebuild"


def summed(
    part: Callable[[Iterable[int]], Callable[[Tensor], Tensor]], n_batches: int, *, retain: bool
) -> Callable[[Tensor], Tensor]:
    """Return v -> the sum of all batches' products.

    Args:
        part: builds the product of some batches.
        n_batches: how many there are.
        retain: build the product of all batches once, instead of that of one batch at a time in every product.
    """
    if retain:
        return part(range(n_batches))

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for i in range(n_batches):
            total += part([i])(v)
        return total

    return product
