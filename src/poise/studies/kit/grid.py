"""Runs of a study: every setting, or every setting with every seed, with progress and over processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from joblib import Parallel, delayed

from poise.studies.kit.study import Progress

Setting = TypeVar("Setting", bound=Hashable)
Result = TypeVar("Result")


def run_each(
    run: Callable[[Setting], Result],
    settings: Sequence[Setting],
    progress: Progress,
    n_jobs: int = 1,
    name: Callable[[Setting], str] = str,
) -> dict[Setting, Result]:
    """Run something for each setting, in the order given; return the results by setting.

    Args:
        run: called with one setting.
        settings: hashable and distinct. The longest first where processes are used.
        progress: told of each run that is done.
        n_jobs: processes, as joblib counts them; ``joblib.parallel_config`` may send the runs to a cluster.
        name: a setting in words, for progress.
    """
    results: dict[Setting, Result] = {}
    jobs = Parallel(n_jobs, return_as="generator")(delayed(run)(setting) for setting in settings)
    for setting, result in zip(settings, jobs, strict=True):
        results[setting] = result
        progress(len(results) / len(settings), name(setting))
    return results


def run_grid(
    run: Callable[[Setting, int], Result],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    progress: Progress,
    n_jobs: int = 1,
    name: Callable[[Setting], str] = str,
) -> dict[Setting, list[Result]]:
    """Run every setting with every seed; return by setting one result a seed.

    Args:
        run: called with a setting and a seed.
        settings: hashable and distinct. The longest first where processes are used.
        seeds: one run each.
        progress: told of each run that is done.
        n_jobs: processes, as joblib counts them.
        name: a setting in words, for progress.
    """
    cells = [(setting, seed) for setting in settings for seed in seeds]
    found = run_each(lambda cell: run(*cell), cells, progress, n_jobs, lambda cell: f"{name(cell[0])}, seed {cell[1]}")
    return {setting: [found[setting, seed] for seed in seeds] for setting in settings}


def part_of(progress: Progress, start: float, end: float) -> Progress:
    """Return progress for a part of the work that takes it from ``start`` to ``end``."""

    def part(fraction: float, words: str) -> None:
        progress(start + (end - start) * fraction, words)

    return part


def stage(progress: Progress, words: str, start: float, end: float) -> Progress:
    """Return :func:`part_of` whose words begin with the name of the part."""
    part = part_of(progress, start, end)
    return lambda fraction, setting: part(fraction, f"{words} {setting}")
