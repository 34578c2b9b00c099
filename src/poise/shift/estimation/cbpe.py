"""Confidence-based performance estimation, with and without a correction for a shift of the inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from poise.evidence.domain_weights import DomainWeights, domain_weights
from poise.shift.estimation.calibration import Boosted, Calibration, Isotonic, cbpe_calibration
from poise.shift.estimation.estimator import Expected, PerformanceEstimator
from poise.shift.estimation.expectation import expect, probabilities
from poise.shift.estimation.metrics import AnyMetric
from poise.shift.estimation.scored_rows import ScoredRows
from poise.shift.estimation.thresholds import Threshold

SAME_DOMAIN_AUC = 0.55
"""Below it, weights are noise: a classifier barely tells the chunk from the reference."""


class CBPE(PerformanceEstimator):
    """Confidence-based performance estimation: the expected metric under calibrated scores.

    It is right where the calibration of the scores on the reference still holds. Under a shift of the inputs it need
    not: see :class:`WeightedCBPE`. A changed relation of labels and inputs cannot be seen without labels by any method.

    Arguments, attributes and errors are those of :class:`PerformanceEstimator`.

    References:
        J. Bialek et al. (2024), arXiv:2401.08348, section on CBPE.
    """

    def _fit_reference(self, reference: Any) -> None:
        certain = self.reference_.certain().astype(np.int64)
        columns = range(certain.shape[1])
        self.calibrations_: list[Calibration] = [
            cbpe_calibration(self.reference_.score[:, k], certain[:, k]) for k in columns
        ]

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        return Expected(self._values(rows, self.calibrations_, number))

    def _values(self, rows: ScoredRows, calibrations: Sequence[Calibration], number: int) -> dict[str, Any]:
        c = probabilities(rows, calibrations)
        return {m.name: expect(m, rows, c, calibrations, self.seed + number) for m in self.metrics}


class _ByDomainWeights(CBPE):
    """What both corrections share: a sample of the reference with features, and the chunk's features."""

    needs_features = True

    def __init__(
        self,
        metrics: Sequence[str | Callable[..., float] | AnyMetric] = ("accuracy", "f1", "roc_auc"),
        *,
        chunk: Any = None,
        threshold: Threshold | None = None,
        seed: int = 0,
        classifier: Any = None,
        max_rows: int = 20_000,
    ) -> None:
        super().__init__(metrics, chunk=chunk, threshold=threshold, seed=seed)
        if max_rows < 100:
            raise ValueError(f"max_rows must be at least 100, got {max_rows}")
        self.classifier, self.max_rows = classifier, max_rows

    def _fit_reference(self, reference: Any) -> None:
        if not self.reader_.features:
            raise ValueError("features: no column is left to compare production with the reference; name them")
        super()._fit_reference(reference)
        index = some_rows(slice(0, len(self.reference_)), self.max_rows, self.seed)
        self.sample_ = self.reader_.read(reference, labels=True, name="reference", index=index)

    def _weights(self, frame: Any, index: Any, folds: int) -> DomainWeights:
        assert self.sample_.features is not None
        chunk = self.reader_.read(frame, labels=False, index=some_rows(index, self.max_rows, self.seed))
        assert chunk.features is not None
        return domain_weights(
            self.sample_.features, chunk.features, classifier=self.classifier, folds=folds, seed=self.seed
        )

    def _weighted(self, weights: np.ndarray) -> list[Calibration]:
        certain = self.sample_.certain()
        columns = range(certain.shape[1])
        return [self._calibration(self.sample_.score[:, k], certain[:, k], weights) for k in columns]

    @abstractmethod
    def _calibration(self, score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Calibration:
        """Fit a calibration to the weighted reference."""


class MCBPE(_ByDomainWeights):
    """M-CBPE as published: the reference weighted to look like the chunk, then boosted calibration of the scores.

    The weights are predicted on the rows on which the classifier was fitted, which makes them too extreme;
    :class:`WeightedCBPE` does not. Its intervals hold the chance of the labels only.

    Args:
        metrics: as of :class:`PerformanceEstimator`.
        chunk: as there.
        threshold: as there.
        seed: as there.
        classifier: tells the chunk from the reference; gradient boosting with 100 trees by default.
        max_rows: how many rows of the reference, and of a chunk, are compared at most; drawn at random.

    References:
        J. Bialek et al. (2024), We don't need no labels: Estimating post-deployment model performance under covariate
        shift without ground truth, arXiv:2401.08348.
    """

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        found = self._weights(frame, index, folds=0)
        return Expected(self._values(rows, self._weighted(found.weights), number), found.overlap, found.auc)

    def _calibration(self, score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Calibration:
        return Boosted.fit(score, label, weight, self.seed)


class WeightedCBPE(_ByDomainWeights):
    """CBPE whose calibration is fitted to the reference weighted to look like the chunk, with cross-fitted weights.

    Unlike :class:`MCBPE` it weights each row by a classifier that did not see it, calibrates by isotonic regression
    (whose error enters the interval), counts rows of the chunk that have no counterpart in the reference, and falls
    back to :class:`CBPE` where the chunk cannot be told from the reference (cross-fitted AUC below 0.55), since weights
    are then noise.

    Args:
        metrics: as of :class:`PerformanceEstimator`.
        chunk: as there.
        threshold: as there.
        seed: as there.
        classifier: tells the chunk from the reference; gradient boosting with 100 trees by default.
        max_rows: how many rows of the reference, and of a chunk, are compared at most; drawn at random. The memory that
            is needed grows with it and not with the table.

    References:
        J. Bialek et al. (2024), arXiv:2401.08348; on cross-fitting V. Chernozhukov et al. (2018), Econometrics
        Journal 21.
    """

    folds = 5

    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        if len(rows) < self.folds:
            reason = f"{len(rows)} rows are too few to estimate weights"
            return Expected(self._values(rows, self.calibrations_, number), fallback=reason)
        found = self._weights(frame, index, self.folds)
        if found.auc < SAME_DOMAIN_AUC:
            reason = f"not told from the reference (AUC {found.auc:.3f})"
            return Expected(self._values(rows, self.calibrations_, number), found.overlap, found.auc, reason)
        return Expected(self._values(rows, self._weighted(found.weights), number), found.overlap, found.auc)

    def _calibration(self, score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Calibration:
        return Isotonic.fit(score, label, weight)


def some_rows(index: Any, most: int, seed: int) -> np.ndarray:
    """Return the numbers of at most ``most`` of the rows, in order."""
    rows = np.arange(index.start, index.stop) if isinstance(index, slice) else np.asarray(index)
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
