"""Low-rank changes of linear layers, which limit how far an update moves the layers below the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poise.continual.heads.find_head import find_head


class LoRALinear(nn.Module):
    r"""A frozen linear layer plus a trainable change of low rank, :math:`W + \frac{\alpha}{r} B A`.

    Args:
        layer: the layer; its parameters are frozen.
        rank: :math:`r`.
        alpha: :math:`\alpha`.
        generator: of the initial :math:`A`; :math:`B` begins at zero, so that the output is unchanged.

    Raises:
        ValueError: if ``rank`` is outside [1, min(in, out)].

    References:
        Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, arXiv:2106.09685.
    """

    def __init__(
        self, layer: nn.Linear, rank: int, alpha: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise ValueError(f"rank must lie in [1, {most}] for a layer {tuple(layer.weight.shape)}, got {rank}")
        self.layer, self.factor = layer, alpha / rank
        layer.requires_grad_(False)
        a = torch.empty(rank, layer.in_features, dtype=layer.weight.dtype)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.a = nn.Parameter(a.to(layer.weight.device))
        self.b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return the output of the changed layer."""
        out: Tensor = self.layer(x)
        return out + self.factor * F.linear(F.linear(x, self.a), self.b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the plain layer with the change added to its weight."""
        self.layer.weight += self.factor * self.b @ self.a
        return self.layer


def inject_lora(
    model: nn.Module,
    rank: int = 48,
    alpha: float = 1.0,
    *,
    targets: Sequence[str] = ("*",),
    head: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Let an update move hidden linear layers only by a change of low rank, in place.

    The output layer stays trainable as a whole, all other parameters are frozen (biases and norms too). Call this
    before the optimizer is made, and :func:`merge_lora_` after the update.

    Args:
        model: the classifier.
        rank: of the change.
        alpha: the change is scaled by ``alpha / rank``.
        targets: patterns of names of linear layers; all but the head by default.
        head: name of the output layer; by default the last linear layer.
        seed: of the initial factors.

    Returns:
        Names of the layers that were changed.

    Raises:
        ValueError: if no layer is found, or ``rank`` is too large for one; nothing is changed then.

    References:
        Harun and Kanan, TMLR 2024, arXiv:2306.01904; Hu et al., ICLR 2022, arXiv:2106.09685.
    """
    _, output = find_head(model, head)
    chosen = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and any(fnmatchcase(name, p) for p in targets)
    }
    if not chosen:
        raise ValueError(f"targets must match a linear layer below the head, got {list(targets)}")
    small = {name: min(m.weight.shape) for name, m in chosen.items() if not 1 <= rank <= min(m.weight.shape)}
    if small:
        raise ValueError(f"rank must lie in [1, {min(small.values())}] for the layers {list(small)}, got {rank}")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name, module in chosen.items():
        _set(model, name, LoRALinear(module, rank, alpha, generator))
    output.requires_grad_(True)
    return list(chosen)


def merge_lora_(model: nn.Module) -> list[str]:
    """Add low-rank changes to the weights, in place, and make all parameters trainable again.

    Returns:
        Names of the layers that were merged.
    """
    changed = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    for name in changed:
        module = model.get_submodule(name)
        assert isinstance(module, LoRALinear)
        _set(model, name, module.merged())
    model.requires_grad_(True)
    return changed


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
