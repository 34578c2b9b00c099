"""The audit of a training recipe: under which changes of its settings it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from poise.curvature import Objective
    from poise.preflight.perturbation_audit.recipe import LossFn
    from poise.report import Report

CONDITIONS = ("base", "lr*5", "init*0.1", "no_warmup")


def perturbation_grid(
    make_model: Callable[[], nn.Module],
    make_loader: Callable[[], Iterable[Any]],
    loss_fn: Objective | nn.Module | LossFn | None = None,
    conditions: Sequence[str] = CONDITIONS,
    seeds: int | Sequence[int] = 3,
    *,
    optimizer: Callable[..., Optimizer] | None = None,
    lr: float = 1e-3,
    steps: int | None = None,
    warmup: int | None = None,
    clip: float | None = 1.0,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train a model under each condition and report under which it fails.

    A condition fails on a seed if the loss becomes infinite or NaN, or falls by less than half of what it falls under
    ``"base"``. Loss is that of training, averaged over the last quarter of the steps. The base itself fails if its loss
    falls by less than twice the standard deviation that it has there.

    Args:
        make_model: returns a fresh model; its weights must come from torch's global generator, which is seeded.
        make_loader: returns an iterable of batches, whose order must come from the same generator.
        loss_fn: a torch criterion for batches ``(inputs, targets)``, a ``poise.curvature.Supervised`` for others, or
            ``loss_fn(model, batch)``; the mean over the batch. Cross-entropy by default.
        conditions: ``"base"`` and others, made of ``"lr*FACTOR"``, ``"init*FACTOR"`` (every weight of two dimensions or
            more) and ``"no_warmup"``, with commas between to combine them: ``"init*0.1, no_warmup"``.
        seeds: how many seeds (0, 1, ...), or the seeds themselves.
        optimizer: called with the parameters and ``lr=``, e.g. ``functools.partial(AdamW, betas=(0.9, 0.95))``.
            AdamW by default.
        lr: peak learning rate of the base.
        steps: optimizer steps of a run; the loader's length by default. A loader that ends is begun again.
        warmup: steps of linear warm-up in the base, before a cosine to zero; a tenth of ``steps`` by default.
        clip: largest norm of the gradient; ``None`` for no clipping.
        n_jobs: parallel runs, as in joblib; ``with joblib.parallel_config(...)`` chooses where.
        progress: called after each run with the runs done and the runs in all.

    Returns:
        A report with one row a condition: final loss by seed, change against the base, and whether it trains.

    Raises:
        ValueError: if a condition cannot be read or comes twice, ``"base"`` is missing, a number is out of range, the
            loader is empty, or it has no length and ``steps`` is not given.

    References:
        Wang et al., "Scale-Distribution Decoupling", 2025, arXiv:2502.15499, table 2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
        >>> report = perturbation_grid(lambda: nn.Linear(4, 3), lambda: DataLoader(data, 16, shuffle=True), seeds=1)
        >>> [row[0] for row in report.blocks[0].rows]
        ['base', 'lr*5', 'init*0.1', 'no_warmup']
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.preflight.perturbation_audit.measure import measure
    from poise.preflight.perturbation_audit.report import grid_report

    return grid_report(
        measure(
            make_model, make_loader, loss_fn, conditions, seeds, optimizer=optimizer, lr=lr, steps=steps, warmup=warmup,
            clip=clip, n_jobs=n_jobs, progress=progress,
        )
    )  # fmt: skip
