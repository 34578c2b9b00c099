"""More classes for a model that is being trained, without losing the optimizer's state of the old ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.continual.heads.find_head import find_head


def grow_head(
    model: nn.Module,
    optimizer: Optimizer | None,
    n: int,
    *,
    head: str | None = None,
    generator: torch.Generator | None = None,
) -> nn.Linear:
    """Add rows to the output layer, in place.

    Weights and optimizer state of the old rows stay as they are, bit for bit. New rows are initialised as torch
    initialises a linear layer, with an optimizer state of zero: momentum and second moments begin anew for them.
    :func:`class_mean_init_` then places them where their samples are. An average of the weights follows with
    ``EMA.sync_structure``.

    Args:
        model: the classifier.
        optimizer: that trains it, also in a wrapper; ``None`` if there is none yet.
        n: new classes.
        head: name of the output layer; by default the last linear layer.
        generator: of the initial weights; torch's global one by default.

    Returns:
        The output layer.

    Raises:
        ValueError: if ``n`` is below 1, or no output layer is found.
        TypeError: if the named module is no ``nn.Linear``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _, layer = find_head(model, head)
    bound = layer.in_features**-0.5
    for name in ("weight", "bias"):
        old = getattr(layer, name)
        if old is None:
            continue
        rows = torch.empty((n, *old.shape[1:]), dtype=old.dtype).uniform_(-bound, bound, generator=generator)
        grown = nn.Parameter(torch.cat([old.detach(), rows.to(old.device)]), requires_grad=old.requires_grad)
        if old.grad is not None:
            grown.grad = _with_zeros(old.grad, n)
        setattr(layer, name, grown)
        if optimizer is not None:
            _replace(optimizer, old, grown, n)
    layer.out_features += n
    return layer


def _replace(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, rows: int) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in optimizer.state:
        state: dict[str, Any] = optimizer.state.pop(old)
        optimizer.state[new] = {
            key: _with_zeros(value, rows) if isinstance(value, Tensor) and value.shape == old.shape else value
            for key, value in state.items()
        }


def _with_zeros(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros((rows, *tensor.shape[1:]))])
