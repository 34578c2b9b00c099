"""Simpler ways to guess a metric without labels, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LinearRegression

from poise.evidence.domain_weights import default_classifier, domain_weights, seeded
from poise.shift.estimation.cbpe import some_rows
from poise.shift.estimation.estimator import Expected, PerformanceEstimator
from poise.shift.estimation.expectation import Expectation
from poise.shift.estimation.scored_rows import ScoredRows

_NO_INTERVAL = (float("nan"), float("nan"))


class ConstantPerformance(PerformanceEstimator):
    """The metric of the reference, for every chunk."""

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        return Expected({name: Expectation(value, *_NO_INTERVAL) for name, value in self.reference_values_.items()})


class AverageThresholdedConfidence(PerformanceEstimator):
    """ATC: the fraction of rows whose confidence is above the threshold that gives the metric on the reference.

    References:
        S. Garg et al. (2022), Leveraging unlabeled data to predict out-of-distribution performance, arXiv:2201.04234.
    """

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        ordered, new = np.sort(_confidence(self.reference_)), _confidence(rows)
        values = {}
        for name, reference in self.reference_values_.items():
            place = min(int((1 - reference) * len(ordered)), len(ordered) - 1)
            values[name] = Expectation(float(np.mean(new >= ordered[place])), *_NO_INTERVAL)
        return Expected(values)


class DifferenceOfConfidence(PerformanceEstimator):
    """DoC: the metric of the reference, changed in proportion to the change of the mean confidence.

    The proportion is fitted to random samples of the reference with as many rows as the chunk.

    References:
        D. Guillory et al. (2021), Predicting with confidence on unseen distributions, arXiv:2107.03315.
    """

    samples = 200

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        random = np.random.default_rng(self.seed)
        size, confidence = min(len(rows), len(self.reference_)), _confidence(self.reference_)
        draws = [random.choice(len(self.reference_), size, replace=False) for _ in range(self.samples)]
        change = np.array([confidence[draw].mean() - confidence.mean() for draw in draws])[:, None]
        new = np.array([[_confidence(rows).mean() - confidence.mean()]])
        values = {}
        for metric in self.metrics:
            reference = self.reference_values_[metric.name]
            moved = [metric.realised(self.reference_.take(draw)) - reference for draw in draws]
            predicted = reference + LinearRegression().fit(change, moved).predict(new)[0]
            values[metric.name] = Expectation(float(predicted), *_NO_INTERVAL)
        return Expected(values)


class ImportanceWeighting(PerformanceEstimator):
    """The metric of the reference, its rows weighted to look like the chunk (by resampling to keep any metric)."""

    needs_features = True
    max_rows = 20_000

    def _fit_reference(self, reference: Any) -> None:
        index = some_rows(slice(0, len(self.reference_)), self.max_rows, self.seed)
        self.sample_ = self.reader_.read(reference, labels=True, name="reference", index=index)

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        chunk = self.reader_.read(frame, labels=False, index=some_rows(index, self.max_rows, self.seed))
        assert self.sample_.features is not None
        assert chunk.features is not None
        found = domain_weights(self.sample_.features, chunk.features, folds=0, seed=self.seed)
        return Expected(
            {m.name: Expectation(_weighted(m, self.sample_, found.weights), *_NO_INTERVAL) for m in self.metrics},
            found.overlap,
            found.auc,
        )


class ReverseTesting(PerformanceEstimator):
    """RT-mod: a model of the chunk's predictions, scored on the reference's labels, less what it misses there.

    References:
        J. Bialek et al. (2024), arXiv:2401.08348, appendix on benchmarks.
    """

    needs_features = True
    max_rows = 20_000

    def _fit_reference(self, reference: Any) -> None:
        index = some_rows(slice(0, len(self.reference_)), self.max_rows, self.seed)
        self.sample_ = self.reader_.read(reference, labels=True, name="reference", index=index)
        half = np.arange(len(self.sample_)) % 2 == 0
        self.missed_ = self._scored(self.sample_.take(half), self.sample_.take(~half), self.reference_values_)

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        chunk = self.reader_.read(frame, labels=False, index=some_rows(index, self.max_rows, self.seed))
        found = self._scored(chunk, self.sample_, self.missed_)
        return Expected({name: Expectation(v, *_NO_INTERVAL) for name, v in found.items()})

    def _scored(self, chunk: ScoredRows, labelled: ScoredRows, minus: dict[str, float]) -> dict[str, float]:
        if len(np.unique(chunk.prediction)) < 2 or not chunk.is_binary:
            return {metric.name: float("nan") for metric in self.metrics}
        model = seeded(default_classifier(), self.seed).fit(chunk.features, chunk.prediction)
        score = model.predict_proba(labelled.features)[:, 1:]
        rows = ScoredRows(score, (score[:, 0] >= 0.5).astype(np.int64), labelled.label)
        return {metric.name: metric.realised(rows) - minus[metric.name] for metric in self.metrics}


def _confidence(rows: ScoredRows) -> np.ndarray:
    return np.maximum(rows.score[:, 0], 1 - rows.score[:, 0]) if rows.is_binary else rows.score.max(1)


def _weighted(metric: Any, rows: ScoredRows, weights: np.ndarray) -> float:
    """Return a metric of weighted rows: each counts as often as its weight says, in systematic resampling."""
    copies = 10 * len(weights)
    edges = np.cumsum(weights) / weights.sum()
    index = np.searchsorted(edges, (np.arange(copies) + 0.5) / copies)
    return float(metric.realised(rows.take(np.minimum(index, len(weights) - 1))))
