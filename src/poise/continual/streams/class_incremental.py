"""Classes that arrive in groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poise.continual.streams.task import Task

Pair = tuple[Tensor, Tensor]


def class_incremental(
    train: Pair, test: Pair, per_task: int | Sequence[int] = 2, *, seed: int | None = None, local_labels: bool = False
) -> list[Task]:
    """Return tasks of a few classes each.

    Args:
        train: inputs and class numbers.
        test: held-out inputs and class numbers.
        per_task: classes in each task, or a list of how many the first, the second, ... has.
        seed: of a random order of the classes; ascending by default.
        local_labels: number the classes of every task from 0. Together with the knowledge of the task when a model is
            used, this is task-incremental learning; without it (default), class-incremental.

    Raises:
        ValueError: if the numbers of classes do not add up to those in ``train``, or are below 1, or a class has no
            held-out sample.
    """
    classes = train[1].unique()
    missing = sorted(set(classes.tolist()) - set(test[1].unique().tolist()))
    if missing:
        raise ValueError(f"test must hold every class, got none of {missing}")
    counts = _counts(per_task, len(classes))
    if seed is not None:
        classes = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))]
    tasks = []
    for i, group in enumerate(classes.split(counts)):
        parts = [_of_classes(pair, group, local_labels) for pair in (train, test)]
        tasks.append(Task(*parts[0], *parts[1], name=f"task {i + 1}"))
    return tasks


def _counts(per_task: int | Sequence[int], n: int) -> list[int]:
    counts = [per_task] * (n // max(per_task, 1)) if isinstance(per_task, int) else list(per_task)
    if sum(counts) != n or any(count < 1 for count in counts):
        raise ValueError(f"per_task must divide the {n} classes into tasks of at least 1, got {per_task}")
    return counts


def _of_classes(pair: Pair, group: Tensor, local_labels: bool) -> Pair:
    x, y = pair
    kept = torch.isin(y, group)
    labels = y[kept]
    if local_labels:
        ascending = group.sort().values
        labels = torch.searchsorted(ascending, labels)
    return x[kept], labels
