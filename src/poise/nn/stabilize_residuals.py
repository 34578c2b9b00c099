"""Give the residual branches of a finished model the factors of a stable residual network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from poise.nn.scaled_residual import Kind, residual_scales
from poise.nn.surgery import RESIDUAL_OUT, Surgery, block_lists, disable_fast_path, kinds, matches, mix_in

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Scaled(nn.Module):
    """A module whose output (the first, of several) is multiplied by its buffer ``residual_scale``."""

    residual_scale: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the scaled output."""
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] * self.residual_scale, *output[1:])
        return output * self.residual_scale


def stabilize_residuals(
    model: nn.Module,
    kind: Kind | Callable[[int, int], float] = "uniform",
    branch_end: tuple[str, ...] = RESIDUAL_OUT,
) -> Surgery:
    """Multiply the output of every residual branch by its factor of :func:`residual_scales`, in place.

    Branches are known by the module that ends them: the last batch norm of a convolutional block, else a name. It
    keeps its class, its parameters and their names, and gains a buffer ``residual_scale``: a state_dict from before
    loads with ``strict=False``.

    Args:
        model: of torchvision's, timm's, transformers' or torch's kind.
        kind: of the factors.
        branch_end: names (or last parts, or patterns) of modules that end a branch.

    Returns:
        The factors by module, in order of depth.

    Raises:
        ValueError: if no branch is found, ``kind`` is unknown, or a batch norm follows the end of a branch.

    References:
        Hayou et al., "Stable ResNet", AISTATS 2021, arXiv:2010.12859.
    """
    ends = [(name, module) for name, module in model.named_modules() if name and _is_end(model, name, branch_end)]
    if not ends:
        raise ValueError(f"no additive residual branch was found, pass branch_end; the modules are {kinds(model)}")
    for name, _ in ends:
        _refuse_cancelled(model, name)
    changed = {}
    for (name, module), scale in zip(ends, residual_scales(len(ends), kind).tolist(), strict=True):
        like = next(module.parameters(), torch.empty(0))
        mix_in(module, Scaled)
        module.register_buffer("residual_scale", torch.tensor(scale, device=like.device))
        changed[name] = f"output multiplied by {scale:.4g}"
    disable_fast_path(model)
    return Surgery("Residual branches scaled", changed, {})


def _is_end(model: nn.Module, name: str, patterns: tuple[str, ...]) -> bool:
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(model.get_submodule(name), Scaled):
        raise ValueError(f"{name} is scaled already")
    if isinstance(parent, nn.MultiheadAttention):
        return False  # it reads its output map's weights without calling it
    if isinstance(model.get_submodule(name), nn.MultiheadAttention):
        return True
    if hasattr(parent, "conv1") and hasattr(parent, "downsample") and hasattr(parent, "bn2"):
        return name.endswith(".bn3" if hasattr(parent, "bn3") else ".bn2")
    children = any(True for _ in model.get_submodule(name).children())
    return matches(name, patterns) and not children and name.startswith(tuple(block_lists(model)))


def _refuse_cancelled(model: nn.Module, name: str) -> None:
    parent_name, _, last = name.rpartition(".")
    siblings = list(model.get_submodule(parent_name).named_children())
    after = siblings[[key for key, _ in siblings].index(last) + 1 :]
    if after and isinstance(after[0][1], _NORMS):
        raise ValueError(
            f"{name} is followed by the batch norm {after[0][0]}, which cancels any factor; scale that one"
        )
