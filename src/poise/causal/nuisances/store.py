"""The store of nuisances: predictions for rows by learners that never saw these rows, each fitted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator

from poise.causal.nuisances.sub_learner import fit_weighted, predicted_mean, seeded_clone

Predict = Callable[[Any, np.ndarray], np.ndarray]


class NuisanceStore:
    """Out-of-fold predictions of nuisances, by name.

    Functionals (average effects, weights, the invalid instrument) read from one store, so that a nuisance that several
    of them need is fitted once.

    Args:
        x: covariates.
        fold: fold of each row.
        weight: weights of rows; ``None`` where all count the same.
        random_state: of the learners; ``None`` leaves their own settings.
        n_jobs: learners that are fitted at once, as joblib counts them.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "rows columns"],
        fold: Int[np.ndarray, " rows"],
        weight: Float[np.ndarray, " rows"] | None = None,
        random_state: np.random.RandomState | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.x, self.fold, self.weight = x, fold, weight
        self.folds = np.unique(fold)
        self._random_state, self._n_jobs = random_state, n_jobs
        self._values: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values[name]

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        self._values[name] = values

    def predict(
        self,
        name: str,
        learner: BaseEstimator,
        target: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        inputs: np.ndarray | None = None,
        at: Sequence[np.ndarray] | None = None,
        prediction: Predict = predicted_mean,
        role: str = "outcome",
    ) -> np.ndarray:
        """Return out-of-fold predictions, and keep them under ``name``.

        Args:
            name: of the nuisance; what is in the store already is not fitted again.
            learner: unfitted; copies of it are fitted.
            target: what is predicted, shape (rows,).
            rows: of which rows to learn, ``bool`` of shape (rows,); all by default.
            inputs: what is learned from; the covariates by default.
            at: tables with inputs to predict at, each of shape (rows, columns); ``inputs`` by default. The result of
                several tables has one more axis in front.
            prediction: reads predictions from a fitted learner.
            role: name of the argument that the learner came as.

        Raises:
            ValueError: if there is no row to learn from outside of a fold, or a prediction is not finite.
        """
        if name in self._values:
            return self._values[name]
        inputs = self.x if inputs is None else inputs
        tables = [inputs] if at is None else list(at)
        chosen = np.ones(len(self.x), bool) if rows is None else rows
        splits = [((self.fold != fold) & chosen, self.fold == fold) for fold in self.folds]
        found = self._fit_each(name, learner, target, inputs, tables, splits, prediction, role)
        values = np.empty((len(tables), len(self.x), *found[0][0].shape[1:]))
        for (_, held_out), predictions in zip(splits, found, strict=True):
            values[:, held_out] = predictions
        self._values[name] = values if at is not None else values[0]
        return self._values[name]

    def predict_by_fold(
        self,
        name: str,
        learner: BaseEstimator,
        target: np.ndarray,
        *,
        inputs: np.ndarray | None = None,
        at: Sequence[np.ndarray] | None = None,
        prediction: Predict = predicted_mean,
        role: str = "outcome",
    ) -> np.ndarray:
        """Return predictions for all rows by learners that are each trained on one fold alone.

        The first axis is the fold that a learner was trained on; what it predicts for rows of that fold must not be
        used. See :meth:`predict` for the arguments.
        """
        if name in self._values:
            return self._values[name]
        inputs = self.x if inputs is None else inputs
        tables = [inputs] if at is None else list(at)
        everything = np.ones(len(self.x), bool)
        splits = [(self.fold == fold, everything) for fold in self.folds]
        found = np.stack(self._fit_each(name, learner, target, inputs, tables, splits, prediction, role))
        self._values[name] = found if at is not None else found[:, 0]
        return self._values[name]

    def _fit_each(
        self,
        name: str,
        learner: BaseEstimator,
        target: np.ndarray,
        inputs: np.ndarray,
        tables: Sequence[np.ndarray],
        splits: Sequence[tuple[np.ndarray, np.ndarray]],
        prediction: Predict,
        role: str,
    ) -> list[np.ndarray]:
        jobs = []
        for fold, (train, predicted) in zip(self.folds, splits, strict=True):
            if not train.any():
                raise ValueError(f"{role} has no row to learn {name} from for fold {fold}")
            weight = None if self.weight is None else self.weight[train]
            parts = [table[predicted] for table in tables]
            copy = seeded_clone(learner, self._random_state)
            jobs.append(delayed(_fit_predict)(copy, inputs[train], target[train], weight, parts, prediction, role))
        found: list[np.ndarray] = Parallel(self._n_jobs)(jobs)
        if not all(np.isfinite(values).all() for values in found):
            raise ValueError(f"{role} must predict finite numbers, got NaN or infinity for {name}")
        return found


def _fit_predict(
    learner: Any,
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    tables: Sequence[np.ndarray],
    prediction: Predict,
    role: str,
) -> np.ndarray:
    fitted = fit_weighted(learner, x, target, weight, role)
    return np.stack([prediction(fitted, table) for table in tables])
