"""Folds of cross-fitting: every arm in every fold, and groups that stay together."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from poise.causal.inputs import CausalData


def stratified_folds(data: CausalData, n_folds: int, random_state: np.random.RandomState) -> Int[np.ndarray, " rows"]:
    """Return the fold of each row, with each arm spread evenly over the folds.

    Args:
        data: rows, arms and groups. Rows of a group share a fold.
        n_folds: number of folds, at least 2.
        random_state: shuffles the rows.

    Raises:
        ValueError: if an arm has too few rows (or groups) to be in the complement of every fold.
    """
    if n_folds < 2:
        raise ValueError(f"cv must be at least 2 folds, got {n_folds}")
    counts = np.bincount(data.arm)
    if counts.min() < n_folds:
        few = data.levels[int(counts.argmin())]
        raise ValueError(
            f"treatment arm {few!r} must have at least {n_folds} rows for {n_folds} folds, got {counts.min()}"
        )
    seed = int(random_state.randint(2**31 - 1))
    kind = StratifiedKFold if data.groups is None else StratifiedGroupKFold
    if data.groups is not None and len(np.unique(data.groups)) < n_folds:
        raise ValueError(f"groups must be at least {n_folds} for {n_folds} folds, got {len(np.unique(data.groups))}")
    fold = np.empty(len(data), dtype=np.intp)
    splits = kind(n_folds, shuffle=True, random_state=seed).split(data.x, data.arm, data.groups)
    for number, (train, held_out) in enumerate(splits):
        if len(np.unique(data.arm[train])) < len(data.levels):
            raise ValueError(f"treatment must have all arms outside of each fold, fold {number} has none left of one")
        fold[held_out] = number
    return fold
