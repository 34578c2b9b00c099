"""What estimators of the performance without labels have in common: tables in, chunks, thresholds, tables out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from poise.evidence.overlap import Overlap
from poise.shift.estimation.chunks import ByNumber, Chunking, as_chunking, divide
from poise.shift.estimation.estimates import ChunkEstimate, MetricEstimate, as_frame
from poise.shift.estimation.expectation import Expectation
from poise.shift.estimation.metrics import AnyMetric, metric_named
from poise.shift.estimation.scored_rows import ScoredRows
from poise.shift.estimation.table_reader import Roles, TableReader, as_table
from poise.shift.estimation.thresholds import DeviationThreshold, IntervalThreshold, Threshold

FEWEST_ROWS, FEW_ROWS = 50, 500
_REFERENCE_CHUNKS = 10


@dataclass(frozen=True, slots=True)
class Expected:
    """All metrics of one chunk, before they are compared with thresholds."""

    values: dict[str, Expectation]
    overlap: Overlap | None = None
    domain_auc: float | None = None
    fallback: str | None = None


class PerformanceEstimator(ABC):
    """Estimates metrics of a classifier on rows without labels.

    Args:
        metrics: names (see :data:`poise.shift.METRICS`), functions ``f(y_true, y_score)``, or metrics.
        chunk: rows per chunk; a period such as ``"1M"``; a :class:`ByNumber`; None for all rows as one chunk.
        threshold: where an estimate counts as an alert.
        seed: of everything random.

    Attributes:
        reader_: reads tables as the reference was read.
        reference_: the rows of the reference, with labels.
        reference_values_: each metric on the whole reference.
        bounds_: lower and upper threshold of each metric.
    """

    needs_features = False

    def __init__(
        self,
        metrics: Sequence[str | Callable[..., float] | AnyMetric] = ("accuracy", "f1", "roc_auc"),
        *,
        chunk: Any = None,
        threshold: Threshold | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(metrics, str) or not len(metrics):
            raise ValueError(f"metrics must be a list with at least one metric, got {metrics!r}")
        self.metrics = tuple(metric_named(metric) for metric in metrics)
        self.chunking: Chunking = as_chunking(chunk)
        self.threshold: Threshold = DeviationThreshold() if threshold is None else threshold
        self.seed = seed

    def fit(
        self,
        reference: Any,
        *,
        y_true: str,
        y_score: str | Mapping[Any, str],
        y_pred: str | None = None,
        timestamp: str | None = None,
        features: Sequence[str] | None = None,
        decision_threshold: float = 0.5,
        positive: Any = 1,
    ) -> Self:
        """Learn from a labelled reference, none of whose rows the classifier was trained on.

        Args:
            reference: pandas, Polars or Arrow table.
            y_true: column of labels.
            y_score: column of the positive class's score; of several classes a mapping from class to column.
            y_pred: column of predictions. By default a score from ``decision_threshold`` is positive, and of several
                classes the one with the largest score is predicted.
            timestamp: column of times, for chunks by time.
            features: inputs of the classifier; by default all other columns but times, constants and identifiers.
            decision_threshold: score from which a row is predicted positive.
            positive: label of the positive class.

        Raises:
            TypeError: if the reference is no table.
            ValueError: if a column is missing, scores are not in [0, 1], labels are missing or of one class only.
        """
        roles = Roles(y_true, y_score, y_pred, timestamp, features, decision_threshold, positive)
        self.reader_ = TableReader(reference, roles)
        self.reference_ = self.reader_.read(reference, labels=True, features=False, name="reference")
        self.reference_values_ = {metric.name: metric.realised(self.reference_) for metric in self.metrics}
        self.bounds_ = self._bounds(self.reader_.times(reference, "reference"))
        self._fit_reference(reference)
        return self

    def estimate(self, production: Any, chunk: Any = None) -> Any:
        """Return estimates for a table without labels (or with them: they are then shown beside, and not used).

        Args:
            production: table with the columns of the reference.
            chunk: how to divide it; as in the constructor by default.

        Returns:
            A table of the same library, one row for each chunk and metric; see :class:`ChunkEstimate` and
            :class:`MetricEstimate` for its columns.

        Raises:
            ValueError: if a column is missing, scores are not in [0, 1], or a chunk has fewer than 50 rows.
        """
        return as_frame(list(self.chunk_estimates(production, chunk)), production)

    def chunk_estimates(self, production: Any, chunk: Any = None) -> Iterator[ChunkEstimate]:
        """Yield the estimates of one chunk after the other; see :meth:`estimate`."""
        self.require_fitted()
        chunking = self.chunking if chunk is None else as_chunking(chunk)
        table = as_table(production, "production")
        self.reader_.require_columns(table, self.needs_features, "production")
        times = self.reader_.times(production, "production") if self.reader_.roles.timestamp in table.columns else None
        chunks = divide(chunking, require_rows(len(table)), times)
        check_sizes([rows_in(index) for index in chunks])
        whole = self.reader_.read(production, labels=True, features=False)
        for number, index in enumerate(chunks):
            yield self.chunk_estimate(production, number, index, times, rows=whole.take(index))

    def chunk_estimate(
        self,
        frame: Any,
        number: int,
        index: Any,
        times: np.ndarray | None = None,
        offset: int = 0,
        rows: ScoredRows | None = None,
    ) -> ChunkEstimate:
        """Return the estimates of one chunk.

        Args:
            frame: table that holds it.
            number: of the chunk.
            index: its rows.
            times: of all rows of the table.
            offset: number of rows before this table.
            rows: the rows of the chunk without features, where they were read already.
        """
        if rows is None:
            rows = self.reader_.read(frame, labels=True, features=False, index=index).take(slice(None))
        expected = self._expect(frame, index, rows, number)
        realised = {m.name: None if rows.label is None else m.realised(rows) for m in self.metrics}
        metrics = tuple(self._judged(name, value, realised[name]) for name, value in expected.values.items())
        first, last = (index.start, index.stop) if isinstance(index, slice) else (int(index[0]), int(index[-1]) + 1)
        begin, end = (None, None) if times is None else (str(times[index].min()), str(times[index].max()))
        return ChunkEstimate(
            number,
            len(rows),
            first + offset,
            last + offset,
            begin,
            end,
            metrics,
            expected.overlap,
            expected.domain_auc,
            expected.fallback,
        )

    def require_fitted(self) -> None:
        """Raise ValueError if nothing was fitted."""
        if not hasattr(self, "reader_"):
            raise ValueError(f"{type(self).__name__} must be fitted to a labelled reference first: call fit")

    def _judged(self, name: str, found: Expectation, realised: float | None) -> MetricEstimate:
        low, high = self.bounds_[name]
        if isinstance(self.threshold, IntervalThreshold):
            alert = found.high < low or found.low > high
        else:
            alert = found.value < low or found.value > high
        return MetricEstimate(
            name, found.value, found.low, found.high, realised, low, high, alert, found.sampling_error
        )

    def _bounds(self, times: np.ndarray | None) -> dict[str, tuple[float, float]]:
        chunks = divide(self.chunking, len(self.reference_), times)
        if len(chunks) < 2:
            chunks = divide(ByNumber(min(_REFERENCE_CHUNKS, len(self.reference_))), len(self.reference_))
        parts = [self.reference_.take(index) for index in chunks]
        return {
            metric.name: self.threshold.bounds(
                metric,
                self.reference_values_[metric.name],
                [metric.realised(part) for part in parts] if isinstance(self.threshold, DeviationThreshold) else (),
            )
            for metric in self.metrics
        }

    def _fit_reference(self, reference: Any) -> None:  # noqa: B027 - a method may need nothing more
        """Learn what the method needs of the reference, whose rows without features are in ``reference_``."""

    @abstractmethod
    def _expect(self, frame: Any, index: Any, rows: ScoredRows, number: int) -> Expected:
        """Return the expected metrics of one chunk."""


def require_rows(rows: int) -> int:
    """Return the number of rows of production, or raise ValueError if it has none."""
    if not rows:
        raise ValueError("production must have at least one row, got none")
    return rows


def check_sizes(sizes: Sequence[int]) -> None:
    """Raise ValueError if a chunk is too small for an estimate, and warn if one is small.

    The last chunk of several may be of any size from 2 rows on: it holds what remains.
    """
    smallest = min(sizes[:-1] or sizes)
    if smallest < FEWEST_ROWS:
        raise ValueError(f"chunk must have at least {FEWEST_ROWS} rows, got {smallest}")
    if smallest < FEW_ROWS:
        warnings.warn(f"chunks of {smallest} rows (below {FEW_ROWS}) give wide intervals", UserWarning, stacklevel=3)


def rows_in(index: Any) -> int:
    """Return the number of rows of a slice or of an array of row numbers."""
    return index.stop - index.start if isinstance(index, slice) else len(index)
