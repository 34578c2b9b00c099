"""The output layer of a classifier, and what goes into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poise.continual.evaluation.evaluator import evaluating
from poise.tools.unwrap import unwrap


def find_head(model: nn.Module, head: str | None = None) -> tuple[str, nn.Linear]:
    """Return the name and the module of the output layer.

    Args:
        model: a classifier.
        head: name of the module; by default the linear layer that comes last in the model.

    Raises:
        ValueError: if there is no linear layer, or no module of that name.
        TypeError: if the named module is no ``nn.Linear``.
    """
    plain = unwrap(model)
    if head is None:
        linear = [(name, module) for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(
                f"model must have a linear output layer, got none in {type(plain).__name__}; name it: head="
            )
        return linear[-1]
    modules = dict(plain.named_modules())
    if head not in modules:
        raise ValueError(f"head must name a module of the model, got {head!r}")
    if not isinstance(modules[head], nn.Linear):
        raise TypeError(f"head must be a torch.nn.Linear, got {type(modules[head]).__name__}")
    return head, modules[head]


@torch.no_grad()
def head_inputs(model: nn.Module, layer: nn.Linear, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Return the features that go into the output layer, in evaluation mode.

    Args:
        model: the classifier.
        layer: its output layer.
        x: inputs.
        batch_size: samples in one forward pass.

    Raises:
        ValueError: if the layer is not used in the forward pass, or its input is not one vector a sample.
    """
    found: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    try:
        with evaluating(model):
            for part in x.split(batch_size):
                model(part)
    finally:
        hook.remove()
    if not found or sum(map(len, found)) != len(x) or found[0].ndim != 2:
        raise ValueError("the head must be used once in each forward pass, on one vector for each sample")
    return torch.cat(found)
