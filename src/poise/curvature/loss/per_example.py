"""A function of single examples, applied to all examples of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poise.curvature.loss.batches import map_tensors, tensors_of

Parameters = tuple[Tensor, ...]


def check_examples_are_independent(model: nn.Module) -> None:
    """See that no layer mixes the examples of a batch.

    Raises:
        ValueError: if a BatchNorm layer is in train mode.
    """
    mixing = mixing_layers(model)
    if mixing:
        raise ValueError(
            "quantities of single examples need examples that do not depend on each other; in train mode "
            f"{mixing} normalise over the batch. Call model.eval()"
        )


def mixing_layers(model: nn.Module) -> list[str]:
    """Return the names of the BatchNorm layers in train mode."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training]


def over_examples(
    function: Callable[[Parameters, Any], Parameters], parameters: Parameters, batch: Any, n: int, chunk_size: int
) -> Iterator[Parameters]:
    """Yield ``function(parameters, example)`` stacked over chunks of examples, each example a batch of one.

    A model that ``torch.vmap`` refuses, for example because it branches on its data, is gone through one by one.

    Args:
        function: of the parameters and a batch of one.
        parameters: its first argument.
        batch: a batch of any kind; its tensors with first dimension ``n`` hold the examples.
        n: number of examples.
        chunk_size: most examples at once.

    Raises:
        RuntimeError: what ``function`` raises, save refusals of ``torch.vmap``.
    """
    tensors = list(tensors_of(batch))
    held = [t for t in tensors if t.ndim and t.shape[0] == n]

    def one(parameters: Parameters, *parts: Tensor) -> Parameters:
        rest = iter(parts)
        example = map_tensors(lambda t: next(rest).unsqueeze(0) if t.ndim and t.shape[0] == n else t, batch)
        return function(parameters, example)

    for chunk in zip(*(t.split(chunk_size) for t in held), strict=True):
        try:
            yield torch.vmap(one, in_dims=(None, *(0 for _ in held)))(parameters, *chunk)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            single = [one(parameters, *parts) for parts in zip(*chunk, strict=True)]
            yield tuple(torch.stack(column) for column in zip(*single, strict=True))
