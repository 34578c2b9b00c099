"""Training on one task after the other with a memory, as the studies of continual learning do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.continual import ContinualEvaluator, Task

Pair = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Pair, Pair | None, int], Tensor]
"""Loss of a model on new samples, replayed samples (``None`` while there are none) and the number of the task."""


def random_batches(task: Task, updates: int, size: int, generator: torch.Generator) -> Iterator[Pair]:
    """Yield batches of random samples."""
    for _ in range(updates):
        pick = torch.randint(len(task), (size,), generator=generator)
        yield task.x[pick], task.y[pick]


def one_pass(
    task: Task, size: int, generator: torch.Generator, most: int | None = None, repeat: int = 1
) -> Iterator[Pair]:
    """Yield every sample once, in random order, each batch ``repeat`` times in a row.

    Args:
        task: the task.
        size: samples a batch.
        generator: of the order.
        most: samples used; all by default.
        repeat: updates on each batch.
    """
    order = torch.randperm(len(task), generator=generator)[:most]
    for pick in order.split(size):
        for _ in range(repeat):
            yield task.x[pick], task.y[pick]


def joint_mean(model: nn.Module, new: Pair, old: Pair | None, task: int) -> Tensor:
    """Return the mean cross entropy over new and replayed samples together."""
    x, y = new if old is None else (torch.cat([new[0], old[0]]), torch.cat([new[1], old[1]]))
    return F.cross_entropy(model(x), y)


def weighted(weight: Callable[[int], float]) -> Loss:
    """Return a loss that weights new samples by ``weight(task)`` and replayed ones by the rest."""

    def loss(model: nn.Module, new: Pair, old: Pair | None, task: int) -> Tensor:
        if old is None:
            return F.cross_entropy(model(new[0]), new[1])
        fresh, replayed = model(torch.cat([new[0], old[0]])).split([len(new[1]), len(old[1])])
        w = weight(task)
        return w * F.cross_entropy(fresh, new[1]) + (1 - w) * F.cross_entropy(replayed, old[1])

    return loss


def train_with_memory(
    model: nn.Module,
    optimizer: Optimizer,
    tasks: Sequence[Task],
    batches: Callable[[Task], Iterator[Pair]],
    evaluator: ContinualEvaluator,
    *,
    memory: Any = None,
    online: bool = False,
    loss: Loss = joint_mean,
    before_step: Callable[[int, Pair, Pair | None], None] | None = None,
    after_step: Callable[[], None] | None = None,
    served: Callable[[], Mapping[str, nn.Module]] | None = None,
) -> None:
    """Train on tasks, and let the evaluator record every update.

    Args:
        model: the model.
        optimizer: its optimizer.
        tasks: in order.
        batches: of a task.
        evaluator: records.
        memory: a buffer with ``add`` and ``sample``; none by default.
        online: add every batch to the memory when it was trained on, instead of the whole task at its end.
        loss: of the model.
        before_step: called with the number of the task, new and replayed samples, after ``backward``.
        after_step: called after each update.
        served: the models to evaluate; the trained one by default.
    """

    def shown() -> Any:
        return model if served is None else served()

    for k, task in enumerate(tasks):
        last: Pair | None = None
        evaluator.begin_task(k, shown())
        for new in batches(task):
            if online and memory is not None and last is not None and new[0] is not last[0]:
                memory.add(*last)
            old = memory.sample(len(new[0])) if memory is not None and len(memory) else None
            value = loss(model, new, old, k)
            optimizer.zero_grad()
            value.backward()
            if before_step is not None:
                before_step(k, new, old)
            optimizer.step()
            if after_step is not None:
                after_step()
            evaluator.after_step(shown())
            last = new
        evaluator.end_task(shown())
        if memory is not None and online and last is not None:
            memory.add(*last)
        elif memory is not None:
            memory.add(task.x, task.y)
