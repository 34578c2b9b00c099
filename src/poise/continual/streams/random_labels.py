"""The same inputs with new random labels in every task: nothing to generalise, only to fit again."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from poise.continual.streams.task import Task


def random_labels(x: Float[Tensor, "samples ..."], classes: int, tasks: int, *, seed: int = 0) -> list[Task]:
    """Return tasks with uniformly random labels, which measure whether a network can still be trained.

    The held-out data of a task are its training data: what counts is whether these can be fitted.

    Args:
        x: inputs.
        classes: how many, at least 2.
        tasks: how many, at least 1.
        seed: of the labels.

    Raises:
        ValueError: if ``classes`` is below 2 or ``tasks`` below 1.
    """
    if classes < 2 or tasks < 1:
        raise ValueError(f"classes must be at least 2 and tasks at least 1, got {classes} and {tasks}")
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(classes, (len(x),), generator=generator) for _ in range(tasks)]
    return [Task(x, y, x, y, f"labels {i + 1}") for i, y in enumerate(labels)]
