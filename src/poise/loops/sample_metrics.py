"""How far samples are from real rows, and how diverse they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from poise.loops.correctors import Corrector, Samples
from poise.loops.gaussian_w2 import sample_w2


def diversity(samples: Samples, real: Samples) -> float:
    """Return the total variance of samples over that of real rows: 1 is as diverse, 0 is one point.

    Args:
        samples: rows of a generator.
        real: real rows.
    """
    return float(samples.var(0).sum() / real.var(0).sum())


def duplicate_share(samples: Samples, real: Samples, tolerance: float = 1e-6) -> float:
    """Return the fraction of samples that are real rows.

    Args:
        samples: rows of a generator.
        real: rows that it was trained on.
        tolerance: largest distance of a duplicate, in units of the median distance of a real row to its nearest other.
    """
    tree = cKDTree(real)
    to_other = np.asarray(tree.query(real, k=2)[0])[:, 1] if len(real) > 1 else np.ones(1)
    nearest = np.asarray(tree.query(samples)[0])
    return float(np.mean(nearest <= tolerance * (np.median(to_other) or 1.0)))


def two_sample_distance(samples: Samples, real: Samples, seed: int = 0) -> float:
    """Return how well a classifier tells samples from real rows, from 0 (not at all) to 1 (always).

    It bounds the total variation distance from below: it is 2 a - 1 for the cross-validated accuracy a of a random
    forest on equally many rows of both, at least 0.

    Args:
        samples: rows of a generator.
        real: real rows that it was not trained on.
        seed: of the rows drawn and of the forest.

    Raises:
        ValueError: if there are fewer than ten rows of one kind.
    """
    n = min(len(samples), len(real))
    if n < 10:
        raise ValueError(f"samples and real must have at least ten rows each, got {len(samples)} and {len(real)}")
    rng = np.random.default_rng(seed)
    chosen = [rows[rng.choice(len(rows), n, replace=False)] for rows in (samples, real)]
    kind = np.repeat([0, 1], n)
    forest = RandomForestClassifier(30, min_samples_leaf=5, random_state=seed)
    predicted = cross_val_predict(forest, np.concatenate(chosen), kind, cv=3)
    return max(0.0, 2 * float((predicted == kind).mean()) - 1)


def loop_metrics(held_out: Samples) -> dict[str, Callable[[Samples], float]]:
    """Return the metrics that a self-consuming loop is watched with, against real rows that no generation sees.

    Args:
        held_out: real rows; ``distance`` is the Frechet distance to them, ``diversity`` the ratio of variances.
    """
    return {
        "distance": lambda samples: sample_w2(samples, held_out),
        "diversity": lambda samples: diversity(samples, held_out),
    }


def corrector_effect(corrector: Corrector, samples: Samples, held_out: Samples, seed: int = 0) -> str:
    """Return whether a correction brings samples nearer to real rows without making them less diverse.

    Args:
        corrector: the correction.
        samples: rows of a generator.
        held_out: real rows that neither has seen.
        seed: of the correction.

    Returns:
        ``"helps"``, ``"neutral"`` (the distance changes by less than 2 %), ``"contracts diversity"`` (the total
        variance falls below 90 % of that of the samples and of the real rows) or ``"hurts"``.
    """
    corrected = corrector(samples, np.random.default_rng(seed))
    kept = corrected.var(0).sum()
    if kept < 0.9 * min(samples.var(0).sum(), held_out.var(0).sum()):
        return "contracts diversity"
    before, after = sample_w2(samples, held_out), sample_w2(corrected, held_out)
    if abs(after - before) < 0.02 * before:
        return "neutral"
    return "helps" if after < before else "hurts"
