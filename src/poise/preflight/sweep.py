"""One sweep for all: learning rate x size x seed, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

from poise.preflight.lr_curve import LRCurve, require_learning_rates

if TYPE_CHECKING:
    from poise.report import Report

Train = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What one run of a sweep ended with.

    Args:
        lr: learning rate.
        size: model size; ``None`` in a sweep without sizes.
        seed: seed.
        loss: final loss; NaN or infinite if the run diverged.
        init_loss: loss at initialisation.
        signals: whatever other numbers the run returned, by name.
    """

    lr: float
    size: int | None
    seed: int
    loss: float
    init_loss: float
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All points of a sweep.

    Args:
        lrs: learning rates, increasing.
        sizes: sizes, increasing; ``(None,)`` in a sweep without sizes.
        seeds: seeds.
        points: one point for each combination, by size, then learning rate, then seed.
    """

    lrs: tuple[float, ...]
    sizes: tuple[int | None, ...]
    seeds: tuple[int, ...]
    points: tuple[SweepPoint, ...]

    def curve(self, size: int | None = None) -> LRCurve:
        """Return loss over learning rate at one size (which may be left out if there is only one).

        Raises:
            ValueError: if the sweep has no such size.
        """
        points = self._at(size)
        losses, initial = [p.loss for p in points], [p.init_loss for p in points]
        return LRCurve(self.lrs, self._grid(losses), self._grid(initial))

    def signal(self, name: str, size: int | None = None) -> Float[np.ndarray, "lrs seeds"]:
        """Return a signal that the runs of one size returned; NaN for a run that did not return it.

        Raises:
            ValueError: if the sweep has no such size, or no run of it returned the signal.
        """
        points = self._at(size)
        known = {key for point in points for key in point.signals}
        if name not in known:
            raise ValueError(f"name must be a signal of the sweep, one of {sorted(known)}; got {name!r}")
        return self._grid([p.signals.get(name, np.nan) for p in points])

    def rows(self) -> list[dict[str, float | int | None]]:
        """Return one flat dict per run, ready for ``pandas.DataFrame`` or ``polars.DataFrame``."""
        own = ("size", "lr", "seed", "loss", "init_loss")
        return [{**{name: getattr(p, name) for name in own}, **p.signals} for p in self.points]

    def report(self) -> Report:
        """Return the curves per size, their sensitivities and largest trainable learning rates."""
        from poise.preflight.lr_report import lr_report

        return lr_report({"all runs" if s is None else f"size {s}": self.curve(s) for s in self.sizes})

    def _at(self, size: int | None) -> list[SweepPoint]:
        if size is None and len(self.sizes) == 1:
            size = self.sizes[0]
        if size not in self.sizes:
            raise ValueError(f"size must be one of {self.sizes}, got {size!r}")
        return [point for point in self.points if point.size == size]

    def _grid(self, values: list[float]) -> np.ndarray:
        return np.array(values, dtype=float).reshape(len(self.lrs), len(self.seeds))


def sweep(
    train: Train,
    lrs: Iterable[float],
    sizes: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 1,
    n_jobs: int | None = None,
    progress: Callable[[SweepPoint, int, int], None] | None = None,
) -> SweepResult:
    """Train at every combination of learning rate, size and seed.

    Runs go through joblib, the largest sizes first; ``with joblib.parallel_config(...)`` chooses where.

    Args:
        train: ``train(lr=..., seed=...)``, with ``size=...`` as well if ``sizes`` is given. Returns a mapping with
            ``loss`` (final validation loss; NaN if the run diverged), ``init_loss`` (the same before the first step)
            and any other numbers worth keeping. It must be picklable for process backends (joblib's own can send
            closures) and take its randomness from ``seed``.
        lrs: learning rates, positive and distinct; best even in the logarithm.
        sizes: model sizes, strictly increasing; ``None`` for a model of one size.
        seeds: how many seeds (0, 1, ...), or the seeds themselves.
        n_jobs: parallel runs, as in joblib.
        progress: called in this process after each run, with its point, the runs done and the runs in all.

    Raises:
        ValueError: if ``lrs``, ``sizes`` or ``seeds`` are not as described, or a run returns no ``loss``, no finite
            ``init_loss``, or something that is no number.

    Example:
        >>> def train(lr, seed):
        ...     return {"loss": abs(lr - 0.1) if lr < 1 else float("nan"), "init_loss": 1.0}
        >>> sweep(train, [0.01, 0.1, 1.0]).curve().best_lr
        0.1
    """
    rates = np.array(sorted(lrs), dtype=float)
    require_learning_rates(rates)
    all_sizes = _checked_sizes(sizes)
    all_seeds = _checked_seeds(seeds)
    grid = list(product(all_sizes, rates.tolist(), all_seeds))
    # The longest runs start first, so that no core ends up waiting for one of them.
    jobs = [delayed(_run_point)(train, *point) for point in reversed(grid)]
    points = {}
    for point in _results(jobs, n_jobs):
        points[point.size, point.lr, point.seed] = point
        if progress is not None:
            progress(point, len(points), len(grid))
    return SweepResult(tuple(rates.tolist()), all_sizes, all_seeds, tuple(points[key] for key in grid))


def _results(jobs: list[Any], n_jobs: int | None) -> Iterable[SweepPoint]:
    # Some backends (multiprocessing, Ray) cannot hand results back one by one.
    streams = n_jobs == 1 or get_active_backend()[0].supports_return_generator
    results: Iterable[SweepPoint] = Parallel(n_jobs, return_as="generator_unordered" if streams else "list")(jobs)
    return results


def _run_point(train: Train, size: int | None, lr: float, seed: int) -> SweepPoint:
    out = train(lr=lr, seed=seed) if size is None else train(lr=lr, size=size, seed=seed)
    place = f"train(lr={lr:g}, seed={seed})" if size is None else f"train(lr={lr:g}, size={size}, seed={seed})"
    if not isinstance(out, Mapping) or not {"loss", "init_loss"} <= out.keys():
        got = sorted(out) if isinstance(out, Mapping) else type(out).__name__
        raise ValueError(f"{place} must return a mapping with 'loss' (lower is better) and 'init_loss', got {got}")
    numbers = {name: _number(value, f"{place}: {name!r}") for name, value in out.items()}
    loss, init_loss = numbers.pop("loss"), numbers.pop("init_loss")
    if not np.isfinite(init_loss):
        raise ValueError(f"{place} must return a finite 'init_loss', got {init_loss!r}")
    return SweepPoint(lr, size, seed, loss, init_loss, numbers)


def _number(value: Any, name: str) -> float:
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number, got {type(value).__name__}") from error


def _checked_sizes(sizes: Sequence[int] | None) -> tuple[int | None, ...]:
    if sizes is None:
        return (None,)
    out = tuple(sizes)
    if not out or out[0] <= 0 or any(b <= a for a, b in pairwise(out)):
        raise ValueError(f"sizes must be positive and strictly increasing, got {list(out)}")
    return out


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    out = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not out or len(set(out)) < len(out):
        raise ValueError(f"seeds must be at least one, and distinct, got {seeds!r}")
    return out
