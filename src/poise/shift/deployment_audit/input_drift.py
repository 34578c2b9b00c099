"""Which inputs moved, weighted by how much the scores depend on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance
from sklearn.ensemble import HistGradientBoostingRegressor

from poise.shift.deployment_audit.facts import InputDrift
from poise.shift.estimation.scored_rows import ScoredRows

_ROWS = 5_000


def input_drift(
    reference: ScoredRows, chunk: ScoredRows, names: Sequence[str], categorical: Sequence[str], seed: int
) -> tuple[InputDrift, ...]:
    """Return every input with its effect size and importance, the most relevant first.

    The importance of an input is how much worse a model of the scores becomes when the input is permuted.

    Args:
        reference: rows with features.
        chunk: rows with features.
        names: of the features.
        categorical: those that are codes of categories.
        seed: of rows, model and permutations.
    """
    assert reference.features is not None
    assert chunk.features is not None
    importance = _importance(reference, seed)
    found = [
        InputDrift(
            name,
            effect_size(reference.features[:, i], chunk.features[:, i], categorical=name in categorical),
            float(importance[i]),
        )
        for i, name in enumerate(names)
    ]
    return tuple(sorted(found, key=lambda drift: (-drift.relevance, -drift.effect, drift.name)))


def effect_size(reference: np.ndarray, chunk: np.ndarray, *, categorical: bool) -> float:
    """Return how far a chunk's values are from the reference's; see :class:`InputDrift`.

    Args:
        reference: values, NaN where missing.
        chunk: values, NaN where missing.
        categorical: whether values are codes of categories.
    """
    before, after = np.isnan(reference), np.isnan(chunk)
    missing = abs(before.mean() - after.mean())
    known, new = reference[~before].astype(np.float64), chunk[~after].astype(np.float64)
    if not len(known) or not len(new):
        return float(missing)
    if categorical:
        codes = np.unique(np.r_[known, new])
        counts = [np.bincount(np.searchsorted(codes, x), minlength=len(codes)) / len(x) for x in (known, new)]
        return float(max(missing, np.abs(counts[0] - counts[1]).sum() / 2))
    spread = known.std()
    if spread == 0:
        return float(max(missing, np.mean(new != known[0])))
    return float(max(missing, wasserstein_distance(known, new) / spread))


def _importance(reference: ScoredRows, seed: int) -> np.ndarray:
    assert reference.features is not None
    random = np.random.default_rng(seed)
    score = reference.score[:, reference.score.var(0).argmax()]
    rows = random.permutation(len(score))
    train, test = rows[: max(len(rows) // 2, 1)][: 2 * _ROWS], rows[len(rows) // 2 :][:_ROWS]
    model = HistGradientBoostingRegressor(early_stopping=False, random_state=seed)
    model.fit(reference.features[train], score[train])
    x = reference.features[test]
    error = np.mean((model.predict(x) - score[test]) ** 2)
    worse = np.zeros(x.shape[1])
    for i in range(x.shape[1]):
        moved = x.copy()
        moved[:, i] = random.permutation(moved[:, i])
        worse[i] = max(0.0, np.mean((model.predict(moved) - score[test]) ** 2) - error)
    return worse / worse.sum() if worse.any() else np.full(len(worse), 1 / len(worse))
