"""How a perturbation grid measures: one training for each condition and seed, in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from torch import nn
from torch.optim import AdamW, Optimizer

from poise.curvature import Objective
from poise.preflight.perturbation_audit.facts import GridFacts
from poise.preflight.perturbation_audit.recipe import LossFn, Perturbation, Recipe


def measure(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], Iterable[Any]],
    loss_fn: Objective | nn.Module | LossFn | None,
    conditions: Sequence[str],
    seeds: int | Sequence[int],
    *,
    optimizer: Callable[..., Optimizer] | None,
    lr: float,
    steps: int | None,
    warmup: int | None,
    clip: float | None,
    n_jobs: int | None,
    progress: Callable[[int, int], None] | None,
) -> GridFacts:
    """Return what a perturbation grid measures; arguments and errors are those of :func:`perturbation_grid`."""
    _check_conditions(conditions)
    used = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not used or len(set(used)) < len(used):
        raise ValueError(f"seeds must be at least one, and distinct, got {seeds!r}")
    loss_fn = nn.functional.cross_entropy if loss_fn is None else loss_fn
    recipe = _recipe(make_model, make_loader, loss_fn, optimizer or AdamW, lr, steps, warmup, clip)
    grid = list(product(conditions, used))
    runs: dict[tuple[str, int], np.ndarray] = {}
    jobs = [delayed(recipe.train)(condition, seed) for condition, seed in grid]
    for key, losses in zip(grid, Parallel(n_jobs, return_as=_order(n_jobs))(jobs), strict=True):
        runs[key] = losses
        if progress is not None:
            progress(len(runs), len(grid))
    losses = {c: np.stack([runs[c, seed] for seed in used]) for c in conditions}
    return GridFacts(losses, used, recipe.lr, recipe.steps, recipe.warmup, recipe.clip)


def _check_conditions(conditions: Sequence[str]) -> None:
    if isinstance(conditions, str):
        raise ValueError(f"conditions must be a sequence of texts, got the text {conditions!r}")
    for condition in conditions:
        Perturbation.parse(condition)
    if "base" not in conditions or len(set(conditions)) < len(conditions):
        raise ValueError(f"conditions must be distinct and include 'base', got {list(conditions)}")


def _recipe(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], Iterable[Any]],
    loss_fn: Any,
    optimizer: Callable[..., Optimizer],
    lr: float,
    steps: int | None,
    warmup: int | None,
    clip: float | None,
) -> Recipe:
    count = _length(make_loader) if steps is None else steps
    rise = count // 10 if warmup is None else warmup
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive and finite, got {lr!r}")
    if count < 1 or not 0 <= rise < count:
        raise ValueError(f"steps must be at least 1 and warmup in 0..steps - 1, got steps {count} and warmup {rise}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip!r}")
    return Recipe(make_model, make_loader, loss_fn, optimizer, lr, count, rise, clip)


def _length(make_loader: Callable[[], Iterable[Any]]) -> int:
    with torch.random.fork_rng():
        loader = make_loader()
    if not hasattr(loader, "__len__"):
        raise ValueError(f"steps must be given: the loader, a {type(loader).__name__}, has no length")
    return len(cast(Any, loader))


def _order(n_jobs: int | None) -> str:
    # Some backends (multiprocessing, Ray) cannot return results one by one.
    streams = n_jobs == 1 or get_active_backend()[0].supports_return_generator
    return "generator" if streams else "list"
