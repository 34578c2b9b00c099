"""Modules that compute something else in training than in evaluation."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def modules_in_training(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the Dropout and BatchNorm modules that are in training mode."""
    return [m for root in roots for m in root.modules() if m.training and isinstance(m, MODAL)]
