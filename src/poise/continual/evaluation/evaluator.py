"""Evaluation of all tasks after every update, in one forward pass."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poise.continual.evaluation.history import AccuracyHistory
from poise.continual.streams.task import Task
from poise.tools.listing import listing
from poise.tools.number import number
from poise.tools.random_states import preserved_random_states

Metric = Callable[[Tensor, Tensor], Any]
Models = nn.Module | Mapping[str, nn.Module]

_MODEL = "model"


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return for each sample whether the largest output is the target's."""
    return outputs.argmax(-1) == targets


class ContinualEvaluator:
    """Record the scores of all tasks seen so far after every update, at a chosen cost.

    All tasks are evaluated in one forward pass over a fixed subset of their held-out data. The model is in evaluation
    mode meanwhile; afterwards modes, gradients, buffers and random states are as they were, bit for bit.

    Args:
        tasks: what is evaluated: tasks, or pairs of held-out inputs and targets; by name if it is a mapping.
        every: updates between two evaluations. The last update of a task is always evaluated.
        subset: held-out samples of each task, drawn once; ``None`` for all.
        metric: called with outputs and targets of some samples, returns a score for each sample, or one number for all
            (higher is better). Accuracy by default.
        seen_only: evaluate only tasks whose training has begun.
        before_first: evaluate once before the first update. With ``seen_only`` that is the first task alone.
        batch_size: most samples in one forward pass.
        seed: of the subsets.

    Attributes:
        seconds: that evaluation took so far.
        step: updates so far.

    Raises:
        ValueError: if there is no task, a task has no held-out data, ``every`` or ``subset`` is below 1, or the model
            returns another number of rows than it was given, or a score that is no finite number.
        TypeError: if a task is neither a task nor a pair of tensors.
        RuntimeError: if an update is reported while no task is trained, or a task begins before the last one ended.

    Warns:
        UserWarning: if a task has fewer samples than ``subset``; all are used then.

    References:
        De Lange et al., "Continual evaluation for lifelong learning: identifying the stability gap", ICLR 2023,
        arXiv:2205.13452.

    Example:
        >>> evaluator = ContinualEvaluator(tasks)
        >>> for i, task in enumerate(tasks):
        ...     with evaluator.task(i, model):
        ...         for x, y in batches(task):
        ...             train_step(model, x, y)
        ...             evaluator.after_step(model)
        >>> evaluator.history.summary()
    """

    def __init__(
        self,
        tasks: Sequence[Any] | Mapping[str, Any],
        *,
        every: int = 1,
        subset: int | None = 1000,
        metric: Metric = accuracy,
        seen_only: bool = True,
        before_first: bool = True,
        batch_size: int = 4096,
        seed: int = 0,
    ) -> None:
        pairs = list(tasks.items()) if isinstance(tasks, Mapping) else list(_named(tasks))
        named = dict(pairs)
        if not named or len(named) < len(pairs):
            raise ValueError(f"tasks must be at least one and have names of their own, got {[n for n, _ in pairs]}")
        if every < 1 or batch_size < 1 or (subset is not None and subset < 1):
            raise ValueError(f"every, batch_size and subset must be at least 1, got {every}, {batch_size} and {subset}")
        self.every, self.metric, self.seen_only, self.before_first = every, metric, seen_only, before_first
        self.batch_size, self.names = batch_size, tuple(named)
        generator = torch.Generator().manual_seed(seed)
        full = [_held_out(task, name) for name, task in named.items()]
        small = [name for (x, _), name in zip(full, named, strict=True) if subset is not None and len(x) < subset]
        if small:
            warnings.warn(
                f"fewer than {subset} held-out samples, of which all are used, have {listing(small)}",
                UserWarning,
                stacklevel=2,
            )
        self._data = [_subset(pair, subset, generator) for pair in full]
        self._exact = all(len(kept[0]) == len(all_[0]) for kept, all_ in zip(self._data, full, strict=True))
        self.seconds, self.step, self._current = 0.0, 0, -1
        self._started: list[int] = []
        self._scores: dict[str, list[np.ndarray]] = {}
        self._rows: list[tuple[int, int]] = []  # task, step
        self._fused: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    @contextmanager
    def task(self, task: int | str, model: Models | None = None) -> Iterator[ContinualEvaluator]:
        """Train a task within this context.

        Args:
            task: its number or name.
            model: evaluated before the first update of all, and at the end where the last update was not evaluated.
        """
        self.begin_task(task, model)
        yield self
        self.end_task(model)

    def begin_task(self, task: int | str, model: Models | None = None) -> None:
        """Say that the following updates train a task; one that was trained before may come again.

        Args:
            task: its number or name.
            model: if given and ``before_first``, evaluated before the first update of all.

        Raises:
            ValueError: if there is no such task.
            RuntimeError: if another task has not ended.
        """
        index = self._index(task)
        if self._current not in (-1, index):  # a run that was resumed within a task begins it again
            raise RuntimeError(f"task {self.names[self._current]!r} must end before another begins: call end_task()")
        if index not in self._started:
            self._started.append(index)
        self._current = index
        if not self._rows and self.before_first and model is not None:
            self._evaluate(model, -1)

    def after_step(self, model: Models) -> None:
        """Count an update; evaluate when it is time. Call it after ``optimizer.step()``.

        Args:
            model: the model, or models by name, such as ``{"trained": model, "served": ema.module}``.

        Raises:
            RuntimeError: if no task is trained.
        """
        if self._current < 0:
            raise RuntimeError("after_step must follow begin_task, got an update while no task is trained")
        self.step += 1
        if self.step % self.every == 0:
            self._evaluate(model, self._current)

    def end_task(self, model: Models | None = None) -> None:
        """Say that the task is trained.

        Args:
            model: evaluated if the last update was not.

        Raises:
            RuntimeError: if no task is trained, or the last update was not evaluated and there is no model.
        """
        if self._current < 0:
            raise RuntimeError("end_task must follow begin_task")
        if self.step and (not self._rows or self._rows[-1] != (self._current, self.step)):
            if model is None:
                raise RuntimeError(
                    f"the last update of task {self.names[self._current]!r} (step {self.step}) was not evaluated: call "
                    "end_task(model)"
                )
            self._evaluate(model, self._current)
        self._current = -1

    def drive(
        self, model: nn.Module, train: Callable[[nn.Module, int], Iterable[Any]], order: Iterable[int] | None = None
    ) -> AccuracyHistory:
        """Train and evaluate a model on all tasks, one after the other.

        Args:
            model: the model.
            train: ``train(model, task)`` makes one update for each item that it yields.
            order: the tasks; each once by default.
        """
        for task in range(len(self.names)) if order is None else order:
            with self.task(task, model):
                for _ in train(model, task):
                    self.after_step(model)
        return self.history

    @property
    def history(self) -> AccuracyHistory:
        """What was recorded, of the first model.

        Raises:
            RuntimeError: if nothing was recorded.
        """
        return next(iter(self.histories.values()))

    @property
    def histories(self) -> dict[str, AccuracyHistory]:
        """What was recorded, by model.

        Raises:
            RuntimeError: if nothing was recorded.
        """
        if not self._rows:
            raise RuntimeError("nothing was evaluated yet")
        trained, steps = (np.array(column, dtype=np.int64) for column in zip(*self._rows, strict=True))
        sizes = tuple(len(x) for x, _ in self._data)
        name = self.metric.__name__ if hasattr(self.metric, "__name__") else type(self.metric).__name__
        return {
            model: AccuracyHistory(np.stack(scores), trained, steps, self.names, sizes, name, self._exact, self.seconds)
            for model, scores in self._scores.items()
        }

    def cost(self) -> str:
        """Return in words what evaluation took."""
        count = len(self._rows)
        each = 1e3 * self.seconds / count if count else 0.0
        samples = sum(len(x) for x, _ in self._data)
        return (
            f"{count} evaluations in {self.step} updates, {number(each, 3)} ms each, {number(self.seconds, 3)} s "
            f"together; up to {samples:,} samples each"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on; the tasks' data are not in it."""
        return {
            "names": list(self.names),
            "step": self.step,
            "current": self._current,
            "started": list(self._started),
            "rows": list(self._rows),
            "scores": {name: [row.tolist() for row in rows] for name, rows in self._scores.items()},
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of an evaluator with the same tasks.

        Raises:
            ValueError: if it had other tasks.
        """
        if list(self.names) != list(state["names"]):
            raise ValueError(f"state must be of an evaluator of the tasks {list(self.names)}, got {state['names']}")
        self.step, self._current, self.seconds = state["step"], state["current"], state["seconds"]
        self._started, self._rows = list(state["started"]), [tuple(row) for row in state["rows"]]
        self._scores = {name: [np.array(row) for row in rows] for name, rows in state["scores"].items()}
        self._fused = None

    def _index(self, task: int | str) -> int:
        index = self.names.index(task) if task in self.names else task
        if not isinstance(index, int) or not 0 <= index < len(self.names):
            raise ValueError(f"task must be one of {list(self.names)} or its number, got {task!r}")
        return index

    def _evaluate(self, models: Models, trained: int) -> None:
        start = time.perf_counter()
        named = models if isinstance(models, Mapping) else {_MODEL: models}
        if self._rows and set(named) != set(self._scores):
            raise ValueError(f"models must be those evaluated before, {sorted(self._scores)}, got {sorted(named)}")
        for name, model in named.items():
            self._scores.setdefault(name, []).append(self._scores_of(model))
        self._rows.append((trained, self.step))
        self.seconds += time.perf_counter() - start

    def _scores_of(self, model: nn.Module) -> np.ndarray:
        device = _device(model)
        tasks = tuple(self._started) if self.seen_only else tuple(range(len(self.names)))
        x, y = self._fuse(tasks, device)
        with evaluating(model), preserved_random_states(device), torch.no_grad():
            outputs = [model(part) for part in x.split(self.batch_size)]
            out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
            if len(out) != len(x):
                raise ValueError(f"model must return a row for each of {len(x)} samples, got {len(out)}")
            found = self._by_task(tasks, out, y)
        row = np.full(len(self.names), np.nan)
        row[list(tasks)] = found
        return row

    def _by_task(self, tasks: tuple[int, ...], out: Tensor, y: Tensor) -> list[float]:
        """Return the scores of tasks whose samples follow each other in ``out``."""
        sizes = [len(self._data[i][0]) for i in tasks]
        scores = self.metric(out, y)
        if isinstance(scores, Tensor) and scores.ndim and len(scores) == len(out):
            found = [float(part) for part in torch.stack([p.double().mean() for p in scores.split(sizes)]).tolist()]
        else:
            pairs = zip(out.split(sizes), y.split(sizes), strict=True)
            found = [float(self.metric(a, b)) for a, b in pairs]
        if not np.isfinite(found).all():
            bad = self.names[tasks[int(np.flatnonzero(~np.isfinite(found))[0])]]
            raise ValueError(f"metric must be a finite number, got {found} at step {self.step}, first on task {bad!r}")
        if self.metric is accuracy and (min(found) < 0 or max(found) > 1):
            raise ValueError(f"accuracy must lie in [0, 1], got {found}")
        return found

    def _fuse(self, tasks: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        if self._fused is None or self._fused[0] != tasks or self._fused[1].device != device:
            x, y = (torch.cat([self._data[i][k].to(device) for i in tasks]) for k in (0, 1))
            self._fused = tasks, x, y
        return self._fused[1:]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _named(tasks: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for i, task in enumerate(tasks):
        yield (task.name if isinstance(task, Task) and task.name else f"task {i + 1}"), task


def _held_out(task: Any, name: str) -> tuple[Tensor, Tensor]:
    if isinstance(task, Task):
        return task.x_test, task.y_test
    if not (isinstance(task, tuple | list) and len(task) == 2 and all(isinstance(t, Tensor) for t in task)):
        raise TypeError(f"task {name!r} must be a Task or a pair of tensors, got {type(task).__name__}")
    if not len(task[0]) or len(task[0]) != len(task[1]):
        raise ValueError(
            f"task {name!r} must have held-out data with one target each, got {len(task[0])} and {len(task[1])}"
        )
    return task[0], task[1]


def _subset(pair: tuple[Tensor, Tensor], subset: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    n = len(pair[0])
    if subset is None or subset >= n:
        return pair
    pick = torch.randperm(n, generator=generator)[:subset].sort().values
    return pair[0][pick.to(pair[0].device)], pair[1][pick.to(pair[1].device)]
