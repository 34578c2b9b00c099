"""Find modules that are copies of a trained one: target networks, momentum encoders, averaged weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

ALIKE = 0.5
_ELEMENTS = 1 << 20  # of a module's matrices that are compared


def copies_of_trained(candidates: Iterable[nn.Module], trained: Collection[int]) -> list[nn.Module]:
    """Return the outermost modules that are copies of a trained one.

    A copy has the names and shapes of its original's parameters, none of which an optimizer holds, and its weights
    equal those of the original or are on their way to them: their cosine is above 0.5. (It is near 0 for weights that
    were drawn independently.)

    Args:
        candidates: the modules to look at, with all of their submodules.
        trained: ids of the parameters that an optimizer holds.
    """
    modules = list(
        dict.fromkeys(m for candidate in candidates if "_modules" in vars(candidate) for m in candidate.modules())
    )
    with_any = [(m, [id(p) in trained for p in m.parameters()]) for m in modules]
    others = [m for m, held in with_any if held and not any(held)]
    if not others:
        return []
    originals: dict[tuple, list[nn.Module]] = {}
    for module, held in with_any:
        if held and all(held):
            originals.setdefault(_structure(module), []).append(module)
    copies = [m for m in others if any(are_alike(m, original) for original in originals.get(_structure(m), ()))]
    inner = {id(child) for copy in copies for child in copy.modules() if child is not copy}
    return [copy for copy in copies if id(copy) not in inner]


def are_alike(first: nn.Module, second: nn.Module) -> bool:
    """Return whether the matrices of two modules of one structure point in about the same direction."""
    ours, theirs = _matrices(first), _matrices(second)
    with torch.no_grad():
        product = sum(float((a * b.to(a.device)).sum()) for a, b in zip(ours, theirs, strict=True))
        norms = [sum(float(t.square().sum()) for t in tensors) ** 0.5 for tensors in (ours, theirs)]
    # The cosine of few numbers is large by chance: five standard deviations of that are asked for, or equality.
    if sum(map(Tensor.numel, ours)) * ALIKE**2 < 25:
        return norms[0] > 0 and all(map(torch.equal, ours, theirs))
    return product > ALIKE * norms[0] * norms[1] > 0


def _structure(module: nn.Module) -> tuple:
    return tuple((name, tuple(p.shape)) for name, p in module.named_parameters())


def _matrices(module: nn.Module) -> list[Tensor]:
    chosen, elements = [], 0
    for p in module.parameters():
        elements += p.numel() if p.dim() >= 2 else 0
        if p.dim() >= 2 and p.is_floating_point() and not p.is_meta and elements <= _ELEMENTS:
            chosen.append(p.detach().float())
    return chosen
