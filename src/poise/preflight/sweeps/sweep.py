"""The sweep over learning rate x size x seed, in parallel."""

from __future__ import annotations

import inspect
import operator
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

from poise.preflight.sweeps.divergence import DivergedRunError, LossWatch
from poise.preflight.sweeps.lr_curve import LRCurve, require_learning_rates
from poise.preflight.sweeps.sweep_folder import SweepFolder, fingerprint
from poise.preflight.sweeps.sweep_point import SweepPoint
from poise.preflight.sweeps.sweep_progress import Progress, SweepTally

if TYPE_CHECKING:
    from poise.report import Report

Train = Callable[..., Mapping[str, Any]]
Key = tuple[int | None, float, int]

_CRASHES = 3  # of workers in a row, without a run that ended between them


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
        own = ("size", "lr", "seed", "loss", "init_loss", "stopped_at")
        return [{**{name: getattr(p, name) for name in own}, **p.signals} for p in self.points]

    def report(self) -> Report:
        """Return the curves per size, their sensitivities and largest trainable learning rates."""
        from poise.preflight.sweeps.lr_report import lr_report

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
    progress: Progress | bool | None = None,
    folder: str | Path | None = None,
) -> SweepResult:
    """Train at every combination of learning rate, size and seed.

    Runs go through joblib, the largest sizes first; ``with joblib.parallel_config(...)`` chooses where. With ``folder``
    every finished run is kept at once: after a crash, a kill or Ctrl-C the same call runs what is missing, and a larger
    grid reuses the points that fit. If a worker dies, its run is started again.

    Diverged runs are stopped early if ``train`` takes ``watch`` (see :func:`~poise.preflight.has_diverged`).

    Args:
        train: ``train(lr=..., seed=...)``, with ``size=...`` as well if ``sizes`` is given. Returns a mapping with
            ``loss`` (final validation loss; NaN if the run diverged), ``init_loss`` (the same before the first step)
            and any other numbers worth keeping. It must be picklable for process backends (joblib's own can send
            closures) and take its randomness from ``seed``. If it has a parameter ``watch``, it gets a function to
            call as ``watch(step, loss)``, first with ``watch(0, init_loss)``, then at every step or every so often.
        lrs: learning rates, positive and distinct; best even in the logarithm.
        sizes: model sizes, strictly increasing; ``None`` for a model of one size.
        seeds: how many seeds (0, 1, ...), or the seeds themselves.
        n_jobs: parallel runs, as in joblib.
        progress: called in this process after each run, with its point, the runs done and the runs in all (from a
            thread where joblib's backend returns nothing before its end: multiprocessing, Ray). Or whether to show a
            progress bar on stderr; by default on a terminal.
        folder: where finished runs are kept. Workers on other machines write there too if it has the same path there;
            otherwise their runs are kept when they return.

    Raises:
        ValueError: if ``lrs``, ``sizes`` or ``seeds`` are not as described, a run returns no ``loss``, no finite
            ``init_loss``, or something that is no number, or ``folder`` belongs to another ``train``.
        FileExistsError: if ``folder`` holds something else.

    References:
        Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", ICLR 2024,
        arXiv:2309.14322.

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
    with _opened(folder, train) as kept, SweepTally(grid, kept.points(), progress) as tally:
        _run_missing(train, kept, tally, n_jobs)
    return SweepResult(tuple(rates.tolist()), all_sizes, all_seeds, tuple(tally.points[key] for key in grid))


@contextmanager
def _opened(folder: str | Path | None, train: Train) -> Iterator[SweepFolder]:
    if folder is not None:
        yield SweepFolder.open(Path(folder), fingerprint(train))
        return
    with tempfile.TemporaryDirectory(prefix="poise-sweep-") as passing:
        yield SweepFolder.open(Path(passing), "")


def _run_missing(train: Train, kept: SweepFolder, tally: SweepTally, n_jobs: int | None) -> None:
    deaths = 0
    while missing := tally.missing:
        # The longest runs start first, so that no core waits for one of them at the end.
        jobs = [delayed(_run_and_keep)(train, kept, *key) for key in reversed(missing)]
        try:
            for point in _results(jobs, n_jobs, kept, tally):
                tally.add(point)
        except Exception as error:
            for point in kept.points():
                tally.add(point)
            deaths = deaths + 1 if len(tally.missing) == len(missing) else 0
            if not _worker_died(error) or deaths == _CRASHES:
                raise
    known = {point.key for point in kept.points()}
    for key, point in tally.points.items():
        if key not in known:  # made on a machine without access to the folder
            kept.keep(point)


def _results(jobs: list[Any], n_jobs: int | None, kept: SweepFolder, tally: SweepTally) -> Iterable[SweepPoint]:
    # Batches of one: a run is kept, and its successor chosen, as soon as it ends.
    streams = n_jobs == 1 or get_active_backend()[0].supports_return_generator
    parallel = Parallel(n_jobs, return_as="generator_unordered" if streams else "list", batch_size=1)
    if streams:
        yield from parallel(jobs)
        return
    # Some backends (multiprocessing, Ray) cannot return results one by one; meanwhile they are read from the folder.
    with _following(kept, tally):
        points = parallel(jobs)
    yield from points


@contextmanager
def _following(kept: SweepFolder, tally: SweepTally) -> Iterator[None]:
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.5):
            for point in kept.points():
                tally.add(point)

    thread = threading.Thread(target=follow, name="poise-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _worker_died(error: Exception) -> bool:
    ray = sys.modules.get("ray")
    if ray is not None and isinstance(error, ray.exceptions.RayError):
        return not isinstance(error, ray.exceptions.RayTaskError)
    return isinstance(error, BrokenExecutor)


def _run_and_keep(train: Train, kept: SweepFolder, size: int | None, lr: float, seed: int) -> SweepPoint:
    point = _run_point(train, size, lr, seed)
    kept.keep(point)
    return point


def _run_point(train: Train, size: int | None, lr: float, seed: int) -> SweepPoint:
    place = f"train(lr={lr:g}, seed={seed})" if size is None else f"train(lr={lr:g}, size={size}, seed={seed})"
    settings: dict[str, Any] = {"lr": lr, "seed": seed} | ({} if size is None else {"size": size})
    watch = LossWatch()
    if _takes_watch(train):
        settings["watch"] = watch
    try:
        out = train(**settings)
    except DivergedRunError as end:
        first = watch.losses[0]
        if not np.isfinite(first):
            raise ValueError(f"{place} must report a finite loss first, as watch(0, init_loss); got {first!r}") from end
        return SweepPoint(lr, size, seed, float("nan"), first, stopped_at=end.step)
    if not isinstance(out, Mapping) or not {"loss", "init_loss"} <= out.keys():
        got = sorted(out) if isinstance(out, Mapping) else type(out).__name__
        raise ValueError(f"{place} must return a mapping with 'loss' (lower is better) and 'init_loss', got {got}")
    numbers = {name: _number(value, f"{place}: {name!r}") for name, value in out.items()}
    loss, init_loss = numbers.pop("loss"), numbers.pop("init_loss")
    if not np.isfinite(init_loss):
        raise ValueError(f"{place} must return a finite 'init_loss', got {init_loss!r}")
    return SweepPoint(lr, size, seed, loss, init_loss, numbers)


def _takes_watch(train: Train) -> bool:
    try:
        return "watch" in inspect.signature(train).parameters
    except ValueError:  # some functions written in C have none
        return False


def _number(value: Any, name: str) -> float:
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number, got {type(value).__name__}") from error


def _checked_sizes(sizes: Sequence[int] | None) -> tuple[int | None, ...]:
    if sizes is None:
        return (None,)
    out = tuple(map(operator.index, sizes))
    if not out or out[0] <= 0 or any(b <= a for a, b in pairwise(out)):
        raise ValueError(f"sizes must be positive and strictly increasing, got {list(out)}")
    return out


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    out = tuple(range(seeds)) if isinstance(seeds, int) else tuple(map(operator.index, seeds))
    if not out or len(set(out)) < len(out):
        raise ValueError(f"seeds must be at least one, and distinct, got {seeds!r}")
    return out
