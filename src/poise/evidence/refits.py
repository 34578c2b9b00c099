"""Training again on changed data or with another seed, in parallel; finished refits are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from poise.tools.atomic_write import atomic_write

Fit = Callable[[Any, int], Any]
"""Trains on data with a seed and returns what is compared."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train again.

    Args:
        data: what is trained on.
        seed: with which seed.
    """

    data: Any
    seed: int


def refit(
    fit: Fit,
    variants: Mapping[str, Variant],
    *,
    n_jobs: int | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train once for each variant and return the results by name.

    Ctrl-C ends it early: the results that are there are returned, and with ``folder`` a later call continues.

    Args:
        fit: ``fit(data, seed)``; with ``n_jobs`` above 1 it must be picklable by joblib.
        variants: data and seed by name.
        n_jobs: parallel refits, as in joblib; ``with joblib.parallel_config(...)`` chooses where.
        folder: keeps each finished result in a file named after its name, data and seed, and reads it back if it is
            there. Use a folder of its own for each ``fit``: what is in the function is not part of the name.
        progress: called after each refit with the refits done and the refits in all.
    """
    kept = {name: _file(folder, name, variant) for name, variant in variants.items()}
    found = {name: joblib.load(path) for name, path in kept.items() if path is not None and path.exists()}
    todo = [name for name in variants if name not in found]
    if progress is not None:
        progress(len(found), len(variants))
    jobs = [joblib.delayed(_named)(fit, name, variants[name]) for name in todo]
    try:
        for name, result in _results(jobs, n_jobs):
            found[name] = result
            if (path := kept[name]) is not None:
                _keep(path, result)
            if progress is not None:
                progress(len(found), len(variants))
    except KeyboardInterrupt:
        pass  # what is finished is still worth a report; the caller sees which names are missing
    return {name: found[name] for name in variants if name in found}


def _results(jobs: list[Any], n_jobs: int | None) -> Iterator[tuple[str, Any]]:
    # Some backends (multiprocessing, Ray) cannot return results one by one.
    streams = n_jobs == 1 or joblib.parallel.get_active_backend()[0].supports_return_generator
    yield from joblib.Parallel(n_jobs, return_as="generator_unordered" if streams else "list")(jobs)


def _named(fit: Fit, name: str, variant: Variant) -> tuple[str, Any]:
    return name, fit(variant.data, variant.seed)


def _file(folder: str | Path | None, name: str, variant: Variant) -> Path | None:
    # The name too: a control with the same data and seed must be trained again, not read.
    return None if folder is None else Path(folder) / f"{joblib.hash((name, variant.seed, variant.data))}.joblib"


def _keep(path: Path, result: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as new:
        joblib.dump(result, new)
