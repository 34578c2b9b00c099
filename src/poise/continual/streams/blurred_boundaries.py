"""Batches whose tasks change gradually instead of at one update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from poise.continual.streams.task import Task


def blurred_boundaries(
    tasks: Sequence[Task], updates: int, batch: int, blur: float = 0.5, *, seed: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    r"""Yield batches of tasks that follow each other without sharp boundaries.

    A sample of update ``n`` belongs to the task whose centre, at :math:`(i + 1/2) u` for :math:`u` updates a task, is
    nearest to :math:`n` plus normal noise of standard deviation ``blur`` times :math:`u`.

    Args:
        tasks: the tasks, in order.
        updates: batches for each task on average.
        batch: samples a batch.
        blur: standard deviation of the noise, in lengths of a task; 0 gives sharp boundaries.
        seed: of the noise and the samples.

    Yields:
        The task most samples belong to, inputs, targets.

    Raises:
        ValueError: if there is no task, ``updates`` or ``batch`` is below 1, or ``blur`` is negative.
    """
    if not tasks or updates < 1 or batch < 1 or blur < 0:
        raise ValueError(
            f"tasks must not be empty, updates and batch at least 1, blur not negative, got {len(tasks)} tasks, "
            f"{updates=}, {batch=}, {blur=}"
        )
    rng = np.random.default_rng(seed)
    for n in range(updates * len(tasks)):
        noisy = (n + 0.5) / updates + blur * rng.standard_normal(batch)
        chosen = np.clip(np.floor(noisy), 0, len(tasks) - 1).astype(int)
        picks = [(int(i), int(rng.integers(len(tasks[i])))) for i in chosen]
        x = torch.stack([tasks[i].x[j] for i, j in picks])
        y = torch.stack([tasks[i].y[j] for i, j in picks])
        yield int(np.bincount(chosen).argmax()), x, y
