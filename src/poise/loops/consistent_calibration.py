"""How far a classifier's outputs deviate from its training labels, also on training sets that have drifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import clone
from sklearn.utils import _safe_indexing, check_consistent_length

from poise.loops.label_rules import LabelRule, label_rule
from poise.loops.loop_statistics import Statistic


@dataclass(frozen=True, slots=True, eq=False)
class ConsistentCalibration:
    """Calibration errors of a learner by shift of its training set.

    Attributes:
        errors: by (fraction relabelled, label), the error of each fit: the statistic of the outputs less that of the
            training labels.
    """

    errors: dict[tuple[float, Any], Float[np.ndarray, " fits"]]

    @property
    def unshifted(self) -> float:
        """Absolute mean error on the training set as it is."""
        return max(abs(float(values.mean())) for (shift, _), values in self.errors.items() if shift == 0)

    @property
    def delta(self) -> float:
        """Largest absolute mean error over all shifts: the calibration error that bounds a feedback loop."""
        return max(abs(float(values.mean())) for values in self.errors.values())


def consistent_calibration(
    estimator: Any,
    X: Any,
    y: Shaped[np.ndarray, " rows"],
    statistic: Statistic,
    *,
    n_train: int,
    shifts: Sequence[float] = (0.0, 0.05, 0.1, 0.2),
    n_fits: int = 5,
    rule: str | LabelRule = "argmax",
    seed: int = 0,
) -> ConsistentCalibration:
    """Estimate the calibration error of a learner on its training distribution and on ones that have drifted.

    A learner may be calibrated on the data as they are and not after a feedback loop has moved them, so a fraction of
    the training labels is set to each label in turn before it is fitted. The error is the statistic of its outputs on
    other rows less that of the (relabelled) training labels.

    Args:
        estimator: classifier; clones are fitted.
        X: rows.
        y: their labels.
        statistic: ``statistic(X, labels)``.
        n_train: rows of a fit; the others, at least as many as there are, are predicted.
        shifts: fractions of the training labels that are set to a label, in [0, 1).
        n_fits: fits for each shift and label, on other rows each.
        rule: how the classifier labels rows.
        seed: of the rows and of the labels drawn.

    Raises:
        ValueError: if ``n_train`` leaves no rows, or a shift is out of range.

    References:
        Taori, Hashimoto, "Data feedback loops: model-driven amplification of dataset biases", ICML 2023,
        arXiv:2209.03942.
    """
    check_consistent_length(X, y)
    y = np.asarray(y)
    if not 1 <= n_train < len(y):
        raise ValueError(f"n_train must be in 1 .. {len(y) - 1}, got {n_train!r}")
    if not all(0 <= shift < 1 for shift in shifts):
        raise ValueError(f"shifts must be in [0, 1), got {list(shifts)}")
    errors: dict[tuple[float, Any], list[float]] = {}
    for fit in range(n_fits):
        rng = np.random.default_rng([seed, fit])
        order = rng.permutation(len(y))
        train, test = order[:n_train], order[n_train:]
        X_train, X_test = _safe_indexing(X, train), _safe_indexing(X, test)
        for shift in shifts:
            for label in [None] if shift == 0 else np.unique(y).tolist():
                labels = y[train].copy()
                if label is not None:
                    labels[rng.random(n_train) < shift] = label
                model = clone(estimator).fit(X_train, labels)
                output = statistic(X_test, label_rule(rule)(model, X_test, rng))
                errors.setdefault((shift, label), []).append(output - statistic(X_train, labels))
    return ConsistentCalibration({key: np.array(values) for key, values in errors.items()})
