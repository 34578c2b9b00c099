"""Dividing data into a training and a validation part, and bringing both to one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.model_selection import train_test_split
from torch import Tensor


def train_validation_split(
    *arrays: Any, validation: float = 0.2, seed: int = 0, stratify: Any | None = None
) -> tuple[Any, ...]:
    """Divide arrays along their first axis, at random, all in the same way.

    Args:
        arrays: tensors or numpy arrays of one length.
        validation: fraction of the samples that go to the validation part, in (0, 1).
        seed: the same seed gives the same division.
        stratify: one label a sample; both parts then hold each label in the same proportion.

    Returns:
        ``(first_train, first_validation, second_train, second_validation, ...)``, of the types that came in.

    Raises:
        ValueError: if there are no arrays, their lengths differ, ``validation`` is outside (0, 1), one part would be
            empty, or a label is too rare to be in both parts.
        TypeError: if an array is neither a tensor nor a numpy array.

    Example:
        >>> import numpy as np
        >>> train, held_out = train_validation_split(np.arange(10))
        >>> len(train), len(held_out)
        (8, 2)
    """
    length = _common_length(arrays, stratify)
    if not 0.0 < validation < 1.0:
        raise ValueError(f"validation must lie in (0, 1), got {validation!r}")
    labels = None if stratify is None else np.asarray(stratify)
    train, held_out = train_test_split(np.arange(length), test_size=validation, random_state=seed, stratify=labels)
    return tuple(part for array in arrays for part in (_pick(array, train), _pick(array, held_out)))


def standardize(
    train: Float[Tensor, "samples ..."], *others: Float[Tensor, "_ ..."]
) -> tuple[Float[Tensor, "_ ..."], ...]:
    """Shift and scale columns so that ``train`` has mean 0 and standard deviation 1 in each.

    Args:
        train: floating-point samples that set the scale; a column that is constant in it is only shifted.
        others: samples to be treated in the same way, for example the validation part.

    Returns:
        ``train`` and the others, transformed, as new tensors.

    Raises:
        ValueError: if ``train`` has fewer than 2 samples or is not floating-point, or holds NaN or infinities.
    """
    if not train.is_floating_point():
        raise ValueError(f"train must be floating-point, got {train.dtype}")
    if len(train) < 2:
        raise ValueError(f"train must hold at least 2 samples, got {len(train)}")
    if not torch.isfinite(train).all():
        raise ValueError("train must be finite, got NaN or infinities")
    # In float64: the mean of a constant float32 column need not be that constant, and rounding would become noise.
    double = train.double()
    mean, constant = double.mean(0), (train == train[0]).all(0)
    scale = double.std(0, correction=0).masked_fill(constant, 1.0)
    return tuple(((part.double() - mean) / scale).to(part.dtype) for part in (train, *others))


def _common_length(arrays: tuple[Any, ...], stratify: Any | None) -> int:
    if not arrays:
        raise ValueError("arrays must hold at least one array, got none")
    for array in arrays:
        if not isinstance(array, Tensor | np.ndarray):
            raise TypeError(f"arrays must be tensors or numpy arrays, got {type(array).__name__}")
        if array.ndim == 0:
            raise ValueError("arrays must have a first axis, got a scalar")
    lengths = [len(array) for array in arrays] + ([] if stratify is None else [len(stratify)])
    if len(set(lengths)) > 1:
        raise ValueError(f"arrays and stratify must have one length, got {lengths}")
    if lengths[0] < 2:
        raise ValueError(f"arrays must hold at least 2 samples, got {lengths[0]}")
    return lengths[0]


def _pick(array: Any, index: np.ndarray) -> Any:
    return array[torch.from_numpy(index).to(array.device)] if isinstance(array, Tensor) else array[index]
