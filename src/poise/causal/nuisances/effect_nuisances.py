"""Nuisances of an effect without unmeasured confounding: propensities and mean outcomes of arms, cross-fitted."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.utils import check_random_state

from poise.causal.inputs import CausalData
from poise.causal.nuisances.defaults import default_classifier, default_regressor
from poise.causal.nuisances.folds import stratified_folds
from poise.causal.nuisances.propensity import (
    clip_propensity,
    is_known,
    known_propensity,
    predicted_arms,
    require_classifier,
)
from poise.causal.nuisances.store import NuisanceStore

CF_ORDERS = (2, 3, 4)


@dataclass(frozen=True, slots=True, eq=False)
class EffectNuisances:
    """Cross-fitted nuisances of all rows.

    Where each nuisance is trained on a fold of its own (``cf_order`` 3 or 4) a row has several draws of them; their
    order of axes is draws, rows, arms.

    Attributes:
        propensity: probability of each arm, clipped.
        complement: the same for the control, from other rows than ``propensity`` with ``cf_order=4``.
        outcome: mean outcome in each arm.
        clipped: rows with a propensity that was clipped.
        known: whether the propensity was given by design.
    """

    propensity: Float[np.ndarray, "draws rows arms"]
    complement: Float[np.ndarray, "draws rows"]
    outcome: Float[np.ndarray, "draws rows arms"]
    clipped: Bool[np.ndarray, " rows"]
    known: bool

    @property
    def n_clipped(self) -> int:
        """Number of rows with a clipped propensity."""
        return int(self.clipped.sum())


def fit_nuisances(
    data: CausalData,
    outcome: Any = None,
    propensity: Any = None,
    *,
    cv: int = 5,
    cf_order: int = 2,
    clip: float = 0.01,
    random_state: Any = None,
    n_jobs: int | None = None,
) -> EffectNuisances:
    """Cross-fit propensities and mean outcomes.

    Mean outcomes of all arms come from one learner, which has the arms as further inputs: it borrows strength between
    arms where they differ little.

    Args:
        data: checked inputs.
        outcome: learner of the mean outcome; a classifier where the outcome is 0 or 1.
        propensity: classifier, a known probability, or a known function of the covariates.
        cv: folds for ``cf_order=2``.
        cf_order: 2: all nuisances of a row come from the complement of its fold. 3: propensity and outcome come from
            different folds of three. 4: of four folds, the probability of the control comes from a third fold.
        clip: smallest probability of an arm.
        random_state: of folds and learners; ``None`` leaves the learners' own settings.
        n_jobs: learners that are fitted at once.

    Raises:
        TypeError: if ``propensity`` is no classifier.
        ValueError: if ``cf_order`` or ``clip`` is out of range, or an arm is too small.
    """
    if cf_order not in CF_ORDERS:
        raise ValueError(f"cf_order must be one of {CF_ORDERS}, got {cf_order!r}")
    generator = check_random_state(random_state)
    fold = stratified_folds(data, cv if cf_order == 2 else cf_order, generator)
    store = NuisanceStore(data.x, fold, data.weight, None if random_state is None else generator, n_jobs)
    raw, known = _raw_propensity(store, data, propensity, cf_order)
    means = _outcome(store, data, default_regressor() if outcome is None else outcome, cf_order)
    clipped = clip_propensity(raw, clip, known)
    if cf_order == 2:
        chosen, own, other = clipped.values[None], means[None], clipped.values[None, :, 0]
        outside = clipped.clipped
    else:
        chosen, other, own, outside = _draws(fold, clipped.values, means, clipped.clipped, cf_order, known)
    found = EffectNuisances(chosen, other, own, outside, known)
    if found.n_clipped:
        warnings.warn(
            f"{found.n_clipped} of {len(data)} rows {'has' if found.n_clipped == 1 else 'have'} a propensity outside "
            f"[{clip:g}, {1 - clip:g}], which was clipped",
            stacklevel=3,
        )
    return found


def _raw_propensity(store: NuisanceStore, data: CausalData, propensity: Any, cf_order: int) -> tuple[np.ndarray, bool]:
    arms = len(data.levels)
    if is_known(propensity):
        return known_propensity(propensity, data.x, arms), True
    learner = default_classifier() if propensity is None else propensity
    require_classifier(learner)
    read, role = predicted_arms(arms), "propensity"
    if cf_order == 2:
        return store.predict(role, learner, data.arm, prediction=read, role=role), False
    return store.predict_by_fold(role, learner, data.arm, prediction=read, role=role), False


def _outcome(store: NuisanceStore, data: CausalData, learner: Any, cf_order: int) -> np.ndarray:
    arms = len(data.levels)
    inputs = with_arms(data.x, data.arm, arms)
    at = [with_arms(data.x, np.full(len(data), arm), arms) for arm in range(arms)]
    if cf_order == 2:
        return np.moveaxis(store.predict("outcome", learner, data.y, inputs=inputs, at=at), 0, -1)
    return np.moveaxis(store.predict_by_fold("outcome", learner, data.y, inputs=inputs, at=at), 1, -1)


def with_arms(x: np.ndarray, arm: np.ndarray, arms: int) -> Float[np.ndarray, "rows inputs"]:
    """Return covariates with one more column for each arm but the control, 1 in the rows of this arm."""
    return np.column_stack([x, *((arm == k).astype(float) for k in range(1, arms))])


def _draws(
    fold: np.ndarray, propensity: np.ndarray, outcome: np.ndarray, clipped: np.ndarray, cf_order: int, known: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all draws of a row's nuisances in which each is trained on a fold of its own, none of them the row's."""
    folds, rows = np.unique(fold), np.arange(len(fold))
    if known:
        propensity = np.broadcast_to(propensity, (len(folds), *propensity.shape))
        clipped = np.broadcast_to(clipped, (len(folds), len(rows)))
    others = [[f for f in folds if f != own] for own in folds]
    chosen, complement, means, outside = [], [], [], np.zeros(len(rows), bool)
    for order in itertools.permutations(range(len(folds) - 1), cf_order - 1):
        # Which fold each nuisance of each row is trained on: propensity, its complement for order 4, outcome.
        trained = [np.array([others[own][i] for own in fold]) for i in order]
        chosen.append(propensity[trained[0], rows])
        complement.append(propensity[trained[-2], rows, 0])
        means.append(outcome[trained[-1], rows])
        outside |= clipped[trained[0], rows] | clipped[trained[-2], rows]
    return np.stack(chosen), np.stack(complement), np.stack(means), outside
