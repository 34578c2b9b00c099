"""A model without chance for the time of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, all but the batch norms that train, and set every mode back at the end.

    Dropout may be a module or a call that reads its module's mode; both are off. Statistics of batches stay those of
    training, since the first step will use them.

    Args:
        model: the model.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, training in modes:
            module.training = training and isinstance(module, _NormBase)
        yield
    finally:
        for module, training in modes:
            module.training = training
