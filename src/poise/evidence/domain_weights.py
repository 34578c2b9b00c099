"""Weights that make one sample look like another, from a classifier that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

from poise.evidence.overlap import Overlap, overlap

MIN_DENOMINATOR = 0.05
MIN_WEIGHT = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class DomainWeights:
    """Density ratio of target and source at the rows of the source.

    Args:
        weights: ``p_target(x) / p_source(x)``, estimated, for each row of the source.
        auc: area under the ROC curve of the classifier that tells target from source; 0.5 if they are alike. It is
            optimistic if the classifier was not cross-fitted.
        overlap: effective sample size, clipped weights, and rows of the target without a counterpart.
        cross_fitted: whether each row's weight comes from a classifier that did not see it.
    """

    weights: Float[np.ndarray, " source"]
    auc: float
    overlap: Overlap
    cross_fitted: bool


def domain_weights(
    source: Float[np.ndarray, "source columns"],
    target: Float[np.ndarray, "target columns"],
    *,
    classifier: Any = None,
    folds: int = 5,
    min_denominator: float = MIN_DENOMINATOR,
    min_weight: float = MIN_WEIGHT,
    seed: int = 0,
) -> DomainWeights:
    r"""Return the density ratio of two samples at the rows of the first.

    A classifier estimates :math:`q(x)`, the probability that a row comes from the target. The weight of a row of the
    source is :math:`w = (n_s / n_t)\, q / \max(d, 1 - q)`, and at least ``min_weight``.

    Args:
        source: rows to be weighted.
        target: rows that they shall look like, with the same columns.
        classifier: any scikit-learn classifier with ``predict_proba``; gradient boosting with 100 trees by default. It
            is cloned; its ``random_state``, and that of its parts, is set from ``seed`` where it is None.
        folds: number of folds for cross-fitting; 0 predicts on the rows it was fitted on, which is optimistic.
        min_denominator: :math:`d`, bounds the largest weight. A row of the target whose :math:`1 - q` is below it has
            next to no counterpart in the source and is counted as unsupported.
        min_weight: smallest weight.
        seed: of folds and classifier.

    Raises:
        ValueError: if the samples are no matrices with the same columns, hold fewer rows than folds, or a bound is out
            of range.

    References:
        S. Bickel, M. Brückner, T. Scheffer (2009), Discriminative learning under covariate shift, JMLR 10;
        J. Bialek et al. (2024), arXiv:2401.08348.
    """
    _check(source, target, folds, min_denominator, min_weight)
    x = np.concatenate([source, target])
    d = np.repeat([0, 1], [len(source), len(target)])
    model = seeded(default_classifier() if classifier is None else clone(classifier), seed)
    q = _fitted(model, x, d, folds, seed)
    odds = q / np.maximum(min_denominator, 1 - q)
    raw = odds[d == 0] * (len(source) / len(target))
    weights = np.maximum(raw, min_weight)
    beyond = 1 - q < min_denominator
    clipped = int((beyond[d == 0] | (raw < min_weight)).sum())
    facts = overlap(weights, clipped=clipped, unsupported=int(beyond[d == 1].sum()), target_rows=len(target))
    return DomainWeights(weights, area_under_roc(d, q), facts, cross_fitted=folds > 0)


def default_classifier() -> HistGradientBoostingClassifier:
    """Return gradient boosting of 100 trees with 31 leaves, which accepts NaN."""
    return HistGradientBoostingClassifier(early_stopping=False)


def seeded(estimator: Any, seed: int) -> Any:
    """Set every ``random_state`` of an estimator and of its parts that is None, and return the estimator."""
    parameters = estimator.get_params(deep=True)
    missing = sorted(name for name, value in parameters.items() if _is_random_state(name) and value is None)
    return estimator.set_params(**{name: seed + i for i, name in enumerate(missing)})


def area_under_roc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that a positive row scores above a negative one, ties counted half."""
    from scipy.stats import rankdata

    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def _fitted(model: Any, x: np.ndarray, d: np.ndarray, folds: int, seed: int) -> np.ndarray:
    if not folds:
        return np.asarray(model.fit(x, d).predict_proba(x)[:, 1])
    q = np.empty(len(x))
    for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, d):
        q[held_out] = clone(model).fit(x[train], d[train]).predict_proba(x[held_out])[:, 1]
    return q


def _is_random_state(name: str) -> bool:
    return name == "random_state" or name.endswith("__random_state")


def _check(source: np.ndarray, target: np.ndarray, folds: int, min_denominator: float, min_weight: float) -> None:
    for name, sample in (("source", source), ("target", target)):
        if np.ndim(sample) != 2 or not np.shape(sample)[1]:
            raise ValueError(f"{name} must be a matrix with at least one column, got shape {np.shape(sample)}")
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"source and target must have the same columns, got {source.shape[1]} and {target.shape[1]}")
    if folds == 1 or folds < 0:
        raise ValueError(f"folds must be 0 or at least 2, got {folds}")
    least = max(folds, 1)
    if min(len(source), len(target)) < least:
        raise ValueError(f"source and target must have at least {least} rows, got {len(source)} and {len(target)}")
    if not 0 < min_denominator < 1:
        raise ValueError(f"min_denominator must lie in (0, 1), got {min_denominator!r}")
    if not min_weight >= 0:
        raise ValueError(f"min_weight must not be negative, got {min_weight!r}")
