"""What is estimated of one chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw

from poise.evidence.overlap import Overlap


@dataclass(frozen=True, slots=True)
class MetricEstimate:
    """A metric of one chunk.

    Args:
        metric: its name.
        value: the estimate; NaN where the metric is not defined on the chunk.
        low: lower end of the interval in which the realised metric lies with probability 95 %.
        high: upper end.
        realised: from labels, if the whole chunk has them.
        lower_threshold: smallest value that is no alert.
        upper_threshold: largest value that is no alert.
        alert: whether the estimate is beyond a threshold.
        sampling_error: standard error of an estimate that is a mean over drawn labels; 0 in closed form.
    """

    metric: str
    value: float
    low: float
    high: float
    realised: float | None
    lower_threshold: float
    upper_threshold: float
    alert: bool
    sampling_error: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkEstimate:
    """All metrics of one chunk.

    Args:
        chunk: its number, from 0.
        rows: number of rows.
        start: number of its first row.
        end: number of its last row, plus one; of chunks by time, rows of other chunks may lie between.
        first_time: earliest time in it, as text; None without times.
        last_time: latest time in it.
        metrics: in the order in which they were asked for.
        overlap: effective sample size of the weighted reference, and rows without a counterpart; None without weights.
        domain_auc: how well the chunk can be told from the reference, 0.5 to 1; None without weights.
        fallback: why the weights were not used; None if they were, or the method has none.
    """

    chunk: int
    rows: int
    start: int
    end: int
    first_time: str | None
    last_time: str | None
    metrics: tuple[MetricEstimate, ...]
    overlap: Overlap | None
    domain_auc: float | None
    fallback: str | None

    def of(self, metric: str) -> MetricEstimate:
        """Return the estimate of one metric."""
        return next(estimate for estimate in self.metrics if estimate.metric == metric)


def table_rows(chunks: Sequence[ChunkEstimate]) -> dict[str, list[Any]]:
    """Return one row for each chunk and metric, as columns."""
    pairs = [(chunk, estimate) for chunk in chunks for estimate in chunk.metrics]
    return {
        "chunk": [c.chunk for c, _ in pairs],
        "rows": [c.rows for c, _ in pairs],
        "start": [c.start for c, _ in pairs],
        "end": [c.end for c, _ in pairs],
        "first_time": [c.first_time for c, _ in pairs],
        "last_time": [c.last_time for c, _ in pairs],
        "metric": [m.metric for _, m in pairs],
        "value": [m.value for _, m in pairs],
        "low": [m.low for _, m in pairs],
        "high": [m.high for _, m in pairs],
        "realised": [m.realised for _, m in pairs],
        "lower_threshold": [m.lower_threshold for _, m in pairs],
        "upper_threshold": [m.upper_threshold for _, m in pairs],
        "alert": [m.alert for _, m in pairs],
        "sampling_error": [m.sampling_error for _, m in pairs],
        "effective_sample_size": [c.overlap and c.overlap.effective_sample_size for c, _ in pairs],
        "unsupported_fraction": [None if c.overlap is None else c.overlap.unsupported_fraction for c, _ in pairs],
        "clipped": [c.overlap and c.overlap.clipped for c, _ in pairs],
        "domain_auc": [c.domain_auc for c, _ in pairs],
        "fallback": [c.fallback for c, _ in pairs],
    }


def as_frame(chunks: Sequence[ChunkEstimate], like: Any) -> Any:
    """Return :func:`table_rows` as a frame of the same library as ``like``."""
    backend = nw.get_native_namespace(like)
    return nw.from_dict(table_rows(chunks), backend=backend.__name__).to_native()
