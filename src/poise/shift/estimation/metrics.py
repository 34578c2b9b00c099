r"""Classification metrics when each row's class is known only as a probability, in closed form.

A metric is a function of the probabilities :math:`c` of the true classes, the predictions and the scores. With
probabilities of 0 and 1 it is the ordinary metric; with calibrated ones it is the expected one (of ratios: the ratio of
expectations). Each comes with its derivative in :math:`c`, from which follows how uncertain it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from poise.shift.estimation.scored_rows import ScoredRows
from poise.tools.nearest_name import did_you_mean

Array = np.ndarray
Valued = tuple[float, Array]
"""A value, and its derivative in the probability of each row (and class)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric in closed form.

    Args:
        name: how it is called.
        expected: from rows and probabilities of the true classes to value and derivative.
        higher_is_better: whether a larger value is a better classifier.
        low: smallest possible value.
        high: largest possible value.
    """

    name: str
    expected: Callable[[ScoredRows, Float[np.ndarray, "rows scores"]], Valued]
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0

    def realised(self, rows: ScoredRows) -> float:
        """Return the metric of rows with labels; NaN where it is not defined."""
        return self.expected(rows, rows.certain())[0]


@dataclass(frozen=True, slots=True)
class SampledMetric:
    """Any function of labels and scores; its expectation is a mean over labels that are drawn.

    Args:
        name: how it is called.
        function: ``function(y_true, y_score) -> float``; labels are 0 and 1 and scores those of the positive class,
            or labels are numbers of columns and scores have one column a class.
        draws: number of draws, at least 2. The standard error of the mean goes with its root.
        higher_is_better: whether a larger value is a better classifier.
        low: smallest possible value.
        high: largest possible value.
    """

    name: str
    function: Callable[[Array, Array], float]
    draws: int = 200
    higher_is_better: bool = True
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"draws must be at least 2, got {self.draws}")

    def of(self, rows: ScoredRows, label: Array) -> float:
        """Return the function's value for given labels."""
        return float(self.function(label, rows.score[:, 0] if rows.is_binary else rows.score))

    def realised(self, rows: ScoredRows) -> float:
        """Return the metric of rows with labels."""
        if rows.label is None:
            raise ValueError("rows must have labels")
        return self.of(rows, rows.label)


AnyMetric = Metric | SampledMetric


def metric_named(metric: Any) -> AnyMetric:
    """Return the metric that a name, a function of labels and scores, or a metric itself stands for.

    Raises:
        ValueError: if there is no metric of that name.
        TypeError: if it is none of these.
    """
    if isinstance(metric, Metric | SampledMetric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metrics: {metric!r} is not known; {did_you_mean(metric, METRICS)}")
        return METRICS[metric]
    if callable(metric):
        return SampledMetric(getattr(metric, "__name__", type(metric).__name__), metric)
    raise TypeError(f"metrics must hold names, functions of (y_true, y_score) or metrics, got {type(metric).__name__}")


def cost_per_row(*, true_positive: float, false_positive: float, false_negative: float, true_negative: float) -> Metric:
    """Return the mean cost of a decision of a binary classifier, as a metric of which less is better.

    Args:
        true_positive: cost of a row that is rightly predicted positive.
        false_positive: cost of a row that is wrongly predicted positive.
        false_negative: cost of a row that is wrongly predicted negative.
        true_negative: cost of a row that is rightly predicted negative.
    """
    costs = ((true_negative, false_negative), (false_positive, true_positive))
    return Metric("cost_per_row", _Cost(costs), False, min(map(min, costs)), max(map(max, costs)))


@dataclass(frozen=True, slots=True)
class _Cost:
    """Costs by prediction, then by class."""

    costs: tuple[tuple[float, float], tuple[float, float]]

    def __call__(self, rows: ScoredRows, c: Array) -> Valued:
        if not rows.is_binary:
            raise ValueError("cost_per_row needs a binary classifier, got one column of scores a class")
        if_negative, if_positive = np.asarray(self.costs, dtype=np.float64)[rows.prediction].T
        value = np.mean(c[:, 0] * if_positive + (1 - c[:, 0]) * if_negative)
        return float(value), ((if_positive - if_negative) / len(rows))[:, None]


def _accuracy(rows: ScoredRows, c: Array) -> Valued:
    n = len(rows)
    if rows.is_binary:
        sign = 2.0 * rows.prediction - 1
        right = np.where(rows.prediction == 1, c[:, 0], 1 - c[:, 0])
        return float(right.sum() / n), (sign / n)[:, None]
    chosen = rows.prediction[:, None] == np.arange(c.shape[1])
    return float(c[chosen].sum() / n), chosen / n


@dataclass(frozen=True, slots=True)
class _OneVsRest:
    """The metric of the positive class, or of several classes the mean of each against the others."""

    metric: Callable[[Array, Array, Array], Valued]

    def __call__(self, rows: ScoredRows, c: Array) -> Valued:
        if rows.is_binary:
            value, slope = self.metric(c[:, 0], rows.prediction == 1, rows.score[:, 0])
            return value, slope[:, None]
        each = [self.metric(c[:, k], rows.prediction == k, rows.score[:, k]) for k in range(c.shape[1])]
        return float(np.mean([value for value, _ in each])), np.stack([s for _, s in each], 1) / len(each)


def _ratio(top: float, bottom: float, top_slope: Array, bottom_slope: Array) -> Valued:
    if bottom == 0:
        return float("nan"), np.full(len(top_slope), np.nan)
    value = top / bottom
    return float(value), (top_slope - value * bottom_slope) / bottom


def _precision(c: Array, positive: Array, _: Array) -> Valued:
    return _ratio(c[positive].sum(), positive.sum(), positive.astype(float), np.zeros(len(c)))


def _recall(c: Array, positive: Array, _: Array) -> Valued:
    return _ratio(c[positive].sum(), c.sum(), positive.astype(float), np.ones(len(c)))


def _specificity(c: Array, positive: Array, _: Array) -> Valued:
    return _recall(1 - c, ~positive, _)[0], -_recall(1 - c, ~positive, _)[1]


def _f1(c: Array, positive: Array, _: Array) -> Valued:
    # 2 TP / (2 TP + FP + FN), whose denominator is the number of predicted plus that of true positives.
    return _ratio(2 * c[positive].sum(), positive.sum() + c.sum(), 2.0 * positive, np.ones(len(c)))


def _balanced_accuracy(c: Array, positive: Array, score: Array) -> Valued:
    recall, specificity = _recall(c, positive, score), _specificity(c, positive, score)
    return (recall[0] + specificity[0]) / 2, (recall[1] + specificity[1]) / 2


def _roc_auc(c: Array, _: Array, score: Array) -> Valued:
    """Return the probability that a positive row scores above a negative one; ties count half."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(c)]))
    positive, negative = (np.add.reduceat(values[order], starts) for values in (c, 1 - c))
    negative_below = (np.cumsum(negative) - negative / 2)[group]
    positive_above = (c.sum() - np.cumsum(positive) + positive / 2)[group]
    n_positive, n_negative = c.sum(), (1 - c).sum()
    pairs = float(c[order] @ negative_below)
    slope = np.empty(len(c))
    slope[order] = negative_below - positive_above
    return _ratio(pairs, n_positive * n_negative, slope, np.full(len(c), n_negative - n_positive))


def _brier(c: Array, _: Array, score: Array) -> Valued:
    right, wrong = (1 - score) ** 2, score**2
    return float(np.mean(c * right + (1 - c) * wrong)), (right - wrong) / len(c)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy),
        Metric("balanced_accuracy", _OneVsRest(_balanced_accuracy)),
        Metric("brier", _OneVsRest(_brier), higher_is_better=False),
        Metric("f1", _OneVsRest(_f1)),
        Metric("precision", _OneVsRest(_precision)),
        Metric("recall", _OneVsRest(_recall)),
        Metric("roc_auc", _OneVsRest(_roc_auc)),
        Metric("specificity", _OneVsRest(_specificity)),
    )
}
"""The metrics by name. Of several classes, all but the accuracy are means of each class against the others."""
