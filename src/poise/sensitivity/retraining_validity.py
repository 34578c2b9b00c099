"""Which counterfactuals stay valid when the model is trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

from poise.evidence.refits import Variant, refit
from poise.sensitivity.counterfactual_stability import favourable_probability

Change = Literal["seed", "leave_out", "bootstrap"]


@dataclass(frozen=True, slots=True, eq=False)
class RetrainingValidity:
    """Validity of points under retrained models.

    Attributes:
        valid: whether each model gives each point the favourable class, shape (models, points).
        changes: what was changed for each model.
    """

    valid: Bool[np.ndarray, "models points"]
    changes: Sequence[str]

    @property
    def survival(self) -> Float[np.ndarray, " points"]:
        """Fraction of the models under which a point stays valid."""
        return np.asarray(self.valid.mean(0))

    @property
    def rate(self) -> float:
        """Fraction of points and models that are valid."""
        return float(self.valid.mean())


def retraining_validity(
    points: Float[np.ndarray, "points dim"],
    fit: Callable[[tuple[Any, Any], int], Any],
    X: Float[np.ndarray, "rows dim"],
    y: Shaped[np.ndarray, " rows"],
    *,
    n_models: int = 20,
    changes: Sequence[Change] = ("seed",),
    leave_out: float = 0.01,
    favourable: Any = 1,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: str | Path | None = None,
) -> RetrainingValidity:
    """Train models again and ask each about the points.

    Args:
        points: counterfactuals; rows with NaN are valid under none.
        fit: ``fit((X, y), seed)`` trains a model and returns it: a classifier with ``predict_proba``, a torch module,
            or a function that gives favourable probabilities.
        X: training rows.
        y: their labels.
        n_models: number of models, the changes in turn.
        changes: ``"seed"`` changes the seed only, ``"leave_out"`` also leaves out rows, ``"bootstrap"`` also draws the
            rows with replacement.
        leave_out: fraction of the rows that is left out.
        favourable: the favourable class.
        seed: of the rows; models have the seeds from ``seed + 1`` on.
        n_jobs: parallel trainings, as in joblib.
        folder: where finished trainings are kept.

    Raises:
        ValueError: if a change is unknown, or a number is out of range.
    """
    if not changes or set(changes) - {"seed", "leave_out", "bootstrap"}:
        raise ValueError(f"changes must be some of 'seed', 'leave_out' and 'bootstrap', got {list(changes)}")
    if n_models < 1 or not 0 < leave_out < 1:
        raise ValueError(f"n_models must be at least 1 and leave_out in (0, 1), got {n_models!r} and {leave_out!r}")
    X, y, rng = np.asarray(X), np.asarray(y), np.random.default_rng(seed)
    variants, kinds = {}, [changes[i % len(changes)] for i in range(n_models)]
    for i, kind in enumerate(kinds):
        rows = np.arange(len(y))
        if kind == "leave_out":
            rows = np.sort(rng.choice(len(y), len(y) - max(1, round(leave_out * len(y))), replace=False))
        elif kind == "bootstrap":
            rows = rng.integers(len(y), size=len(y))
        variants[f"{kind} {i}"] = Variant((X[rows], y[rows]), seed + 1 + i)
    models = refit(fit, variants, n_jobs=n_jobs, folder=folder)
    there = np.isfinite(points).all(1)
    valid = np.zeros((len(models), len(points)), bool)
    for row, model in zip(valid, models.values(), strict=True):
        if there.any():
            row[there] = favourable_probability(model, favourable)(points[there]) >= 0.5
    return RetrainingValidity(valid, list(models))
