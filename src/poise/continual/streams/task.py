"""A task: data to train on and data that is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One part of a stream: training data, and held-out data on which it is evaluated.

    Args:
        x: inputs to train on.
        y: their targets.
        x_test: held-out inputs.
        y_test: their targets.
        name: for tables and figures.

    Raises:
        TypeError: if one of the four is not a tensor.
        ValueError: if a part is empty or inputs and targets differ in length.
    """

    x: Float[Tensor, "train ..."]
    y: Shaped[Tensor, "train ..."]
    x_test: Float[Tensor, "test ..."]
    y_test: Shaped[Tensor, "test ..."]
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("x", "y", "x_test", "y_test"):
            if not isinstance(getattr(self, field), Tensor):
                raise TypeError(f"{field} must be a tensor, got {type(getattr(self, field)).__name__}")
        for inputs, targets, words in ((self.x, self.y, "training"), (self.x_test, self.y_test, "held-out")):
            if not len(inputs):
                raise ValueError(f"task {self.name!r} must have {words} data, got none")
            if len(inputs) != len(targets):
                raise ValueError(
                    f"task {self.name!r} must have one target for each {words} input, got {len(inputs)} inputs and "
                    f"{len(targets)} targets"
                )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that occur in the training data, ascending."""
        return tuple(int(c) for c in self.y.unique())


def as_task(data: Any, name: str) -> Task:
    """Return what a caller gave as a task.

    Args:
        data: a :class:`Task`, or a pair ``(training, held_out)``; each a pair of tensors ``(inputs, targets)`` or a
            dataset of torch whose samples are such pairs.
        name: for a task that has none, and for messages.

    Raises:
        TypeError: if it is neither.
        ValueError: if there is no held-out data, or a part is empty.
    """
    if isinstance(data, Task):
        return data if data.name else Task(data.x, data.y, data.x_test, data.y_test, name)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        raise ValueError(f"{name} must have held-out data: give ((x, y), (x_test, y_test)), got one pair of tensors")
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(
            f"{name} must be a Task or a pair (training, held_out) of datasets, got {type(data).__name__}; "
            "held-out data is needed to see what an update breaks"
        )
    (x, y), (x_test, y_test) = (_tensors(part, name) for part in data)
    return Task(x, y, x_test, y_test, name)


def _tensors(part: Any, name: str) -> tuple[Tensor, Tensor]:
    if isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(t, Tensor) for t in part):
        return part[0], part[1]
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        if not len(part):
            raise ValueError(f"{name} must have training and held-out data, got an empty dataset")
        samples = [part[i] for i in range(len(part))]
        return torch.stack([torch.as_tensor(s[0]) for s in samples]), torch.as_tensor([int(s[1]) for s in samples])
    raise TypeError(f"the parts of {name} must be pairs of tensors or datasets, got {type(part).__name__}")
