"""The gradients of the parts of a loss: which one moves the parameters, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class GradientParts:
    """Norms and cosines of the gradients of several losses at one point.

    Args:
        norms: by loss.
        cosines: by pair of losses, in the order in which they were given; 0 where a gradient is zero.
    """

    norms: dict[str, float]
    cosines: dict[tuple[str, str], float]

    def ratio(self, first: str, second: str) -> float:
        """Return the norm of one gradient over that of another; infinite if the other is zero.

        Args:
            first: name of a loss, such as ``"stability"``.
            second: name of a loss, such as ``"plasticity"``.
        """
        return self.norms[first] / self.norms[second] if self.norms[second] else float("inf")


def gradient_parts(
    model: nn.Module | Iterable[Tensor], losses: Mapping[str, Tensor], retain_graph: bool = True
) -> GradientParts:
    """Return how large the gradients of several losses are, and how they point to each other.

    At the first update on new data the gradient of a penalty that keeps old knowledge is zero, and that of replayed old
    data small: nothing resists the gradient of the new data. That is why a stability gap begins at once.

    Args:
        model: the model, or its parameters. ``.grad`` is not touched.
        losses: scalars by name, such as ``{"plasticity": new_loss, "stability": memory_loss}``.
        retain_graph: keep the graph, so that ``backward`` may follow.

    Raises:
        ValueError: if there is no loss, or a loss depends on no parameter that is trained.

    References:
        De Lange et al., ICLR 2023, arXiv:2205.13452.
    """
    if not losses:
        raise ValueError("losses must hold at least one, got none")
    params = [p for p in (model.parameters() if isinstance(model, nn.Module) else model) if p.requires_grad]
    flat = {}
    for i, (name, loss) in enumerate(losses.items()):
        if not loss.requires_grad:
            raise ValueError(f"loss {name!r} must depend on a parameter that requires a gradient")
        keep = retain_graph or i + 1 < len(losses)
        grads = torch.autograd.grad(loss, params, retain_graph=keep, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        flat[name] = torch.cat([part.detach().reshape(-1).double() for part in parts])
    norms = {name: float(g.norm()) for name, g in flat.items()}
    names = list(flat)
    cosines = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            size = norms[a] * norms[b]
            cosines[a, b] = float(flat[a] @ flat[b]) / size if size else 0.0
    return GradientParts(norms, cosines)
