"""From scores to probabilities: monotone and boosted calibration, and whether it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from sklearn.ensemble import HistGradientBoostingRegressor

from poise.evidence.domain_weights import area_under_roc

Array = np.ndarray
_SPLITS, _BINS, _SEED = 10, 10, 42
_SEPARATED = 0.999


class Calibration(Protocol):
    """A function from scores to probabilities that was fitted to labels."""

    def probability(self, score: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Return the probability that the label is 1."""

    def variance(self, score: Float[np.ndarray, " rows"], slope: Float[np.ndarray, " rows"]) -> float:
        """Return the variance of the sum of ``slope * probability`` that comes from the finite reference."""


class Identity:
    """Scores that are probabilities already."""

    def probability(self, score: Array) -> Array:
        """Return the scores."""
        return score

    def variance(self, score: Array, slope: Array) -> float:
        """Return 0: nothing was fitted."""
        return 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Isotonic:
    """A non-decreasing step function of the score, linear between steps; constant beyond the reference.

    Args:
        scores: where its pieces begin and end.
        values: its values there.
        levels: its distinct values.
        level_variance: variance of each, as the mean of the labels in its step.
    """

    scores: Float[np.ndarray, " knots"]
    values: Float[np.ndarray, " knots"]
    levels: Float[np.ndarray, " levels"]
    level_variance: Float[np.ndarray, " levels"]

    @classmethod
    def fit(cls, score: Array, label: Array, weight: Array | None = None) -> Isotonic:
        """Fit it by weighted least squares."""
        knots, values = _isotonic(score, label, weight)
        levels = np.unique(values)
        step = _nearest(levels, np.interp(score, knots, values))
        w = np.ones(len(score)) if weight is None else weight
        total, squares = (np.bincount(step, part, len(levels)) for part in (w, w**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = np.where(total > 0, total**2 / squares, 1.0)
        # A step that holds one class only is less certain than its own variance of 0 says.
        mean = (levels * rows + 0.5) / (rows + 1)
        return cls(knots, values, levels, mean * (1 - mean) / rows)

    def probability(self, score: Array) -> Array:
        """Return the step's value, interpolated between steps."""
        return np.interp(score, self.scores, self.values)

    def variance(self, score: Array, slope: Array) -> float:
        """Return the variance of the sum, the steps taken as given and their values as independent."""
        step = _nearest(self.levels, self.probability(score))
        return float(np.bincount(step, slope, len(self.levels)) ** 2 @ self.level_variance)


@dataclass(frozen=True, slots=True, eq=False)
class Boosted:
    """Gradient boosting of the label on the score alone, as published for M-CBPE; within [0, 1].

    Args:
        model: the fitted regressor.
    """

    model: HistGradientBoostingRegressor

    @classmethod
    def fit(cls, score: Array, label: Array, weight: Array | None = None, seed: int = 0) -> Boosted:
        """Fit it with 100 trees of 31 leaves."""
        model = HistGradientBoostingRegressor(early_stopping=False, random_state=seed)
        return cls(model.fit(score[:, None], label, sample_weight=weight))

    def probability(self, score: Array) -> Array:
        """Return its prediction, moved into [0, 1]."""
        return np.clip(self.model.predict(score[:, None]), 0, 1)

    def variance(self, score: Array, slope: Array) -> float:
        """Return 0: it is not known, so that intervals only hold the chance of the labels."""
        return 0.0


def cbpe_calibration(score: Array, label: Array) -> Isotonic | Identity:
    """Return isotonic calibration where it lowers the calibration error on held-out rows, else the scores as they are.

    Ten times a tenth of the rows is held out. Scores that separate the classes nearly perfectly, and labels of one
    class, are not calibrated.

    Args:
        score: in [0, 1].
        label: 0 or 1.

    References:
        Confidence-based performance estimation as in J. Bialek et al. (2024), arXiv:2401.08348.
    """
    return Isotonic.fit(score, label) if needs_calibration(score, label) else Identity()


def needs_calibration(score: Array, label: Array) -> bool:
    """Return whether isotonic calibration lowers the expected calibration error on held-out rows."""
    counts = np.bincount(label, minlength=2)
    if counts.min() < _SPLITS or area_under_roc(label, score) > _SEPARATED:
        return False
    order = np.argsort(score, kind="stable")  # once: a part of sorted rows is sorted
    score, label = score[order], label[order]
    rows, random = [np.flatnonzero(label == k) for k in (0, 1)], np.random.default_rng(_SEED)
    held_out: list[tuple[Array, Array, Array]] = []
    for _ in range(_SPLITS):
        test = np.zeros(len(label), dtype=bool)
        for of_class in rows:
            test[random.choice(of_class, len(of_class) // 10, replace=False)] = True
        knots, values = _isotonic_sorted(score[~test], label[~test])
        held_out.append((label[test], score[test], np.interp(score[test], knots, values)))
    labels, before, after = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    return calibration_error(labels, before) > calibration_error(labels, after)


def calibration_error(label: Array, probability: Array, bins: int = _BINS) -> float:
    """Return the expected calibration error over bins of equally many rows; the last one takes what remains.

    Args:
        label: 0 or 1.
        probability: of label 1.
        bins: how many; fewer if there are fewer than two rows a bin.

    References:
        M. Naeini, G. Cooper, M. Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning.
    """
    n = len(label)
    bins = max(1, min(bins, n // 2))
    order = np.argsort(probability)
    starts = np.arange(bins) * (n // bins)
    gaps = np.add.reduceat((probability - label)[order], starts)
    return float(np.abs(gaps).sum() / n)


def _isotonic(score: Array, label: Array, weight: Array | None = None) -> tuple[Array, Array]:
    order = np.argsort(score, kind="stable")
    return _isotonic_sorted(score[order], label[order], None if weight is None else weight[order])


def _isotonic_sorted(score: Array, label: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Return the knots of isotonic regression on sorted scores: the ends of its steps, and its values there."""
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    w = np.diff(np.r_[starts, len(score)]).astype(np.float64) if weight is None else np.add.reduceat(weight, starts)
    top = np.add.reduceat(label if weight is None else label * weight, starts)
    values = isotonic_regression(top / w, weights=w).x
    end = np.r_[True, values[1:] != values[:-1], True]
    kept = end[:-1] | end[1:]
    return np.asarray(score[starts][kept], np.float64), values[kept]


def _nearest(levels: Array, values: Array) -> Array:
    if len(levels) == 1:
        return np.zeros(len(values), dtype=np.int64)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
