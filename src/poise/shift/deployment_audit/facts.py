"""Everything that the audit of a deployed classifier measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from poise.shift.estimation.estimates import ChunkEstimate, MetricEstimate

State = Literal["holds", "dropped", "cannot be told"]

MOST_UNSUPPORTED = 0.1
"""From this fraction of rows without a counterpart on, an estimate says nothing about the chunk."""
LEAST_EFFECTIVE_ROWS = 100.0
"""Below this effective sample size, weights rest on too few rows."""
EFFECT_THAT_MATTERS = 0.1
"""A shift of a tenth of a standard deviation: half of what is called a small effect."""
DRIFT_THAT_MATTERS = 0.02
"""Effect size times importance; for example 0.2 standard deviations of an input with a tenth of the importance."""


@dataclass(frozen=True, slots=True)
class InputDrift:
    """How far one input moved, and how much that can matter.

    Args:
        name: of the input.
        effect: distance of the distributions: of numbers their Wasserstein distance in standard deviations of the
            reference, of categories the total variation; or the change of the fraction of missing values, if larger.
        importance: fraction of what the scores depend on.
    """

    name: str
    effect: float
    importance: float

    @property
    def relevance(self) -> float:
        """Effect size times importance."""
        return self.effect * self.importance

    @property
    def matters(self) -> bool:
        """Whether the metrics can suffer from it."""
        return self.effect >= EFFECT_THAT_MATTERS and self.relevance >= DRIFT_THAT_MATTERS


@dataclass(frozen=True, slots=True)
class AuditedMetric:
    """A metric on the reference.

    Args:
        name: of the metric.
        reference: its value on the whole reference.
        higher_is_better: whether a larger value is a better classifier.
    """

    name: str
    reference: float
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """All that an audit measured.

    Args:
        method: name of the estimator.
        metrics: in the order in which they were asked for.
        chunks: estimates of each chunk, in order.
        uncorrected: the same without weights: the control.
        drift: of each input in the chunk on which the verdict rests, the most relevant first.
        reference_rows: rows of the reference.
        calibration_error: of the scores on the reference.
        left_out: columns that were not used as inputs, with reasons.
        notes: what else the user should know.
        planned: number of chunks there are; more than ``chunks`` if the audit was interrupted.
        seed: of everything random.
    """

    method: str
    metrics: tuple[AuditedMetric, ...]
    chunks: tuple[ChunkEstimate, ...]
    uncorrected: tuple[ChunkEstimate, ...]
    drift: tuple[InputDrift, ...]
    reference_rows: int
    calibration_error: float
    left_out: dict[str, str]
    notes: tuple[str, ...]
    planned: int
    seed: int

    @property
    def last(self) -> ChunkEstimate:
        """The last chunk that is at least half as large as the largest: the verdict is about it."""
        largest = max(chunk.rows for chunk in self.chunks)
        return next(chunk for chunk in reversed(self.chunks) if 2 * chunk.rows >= largest)

    @property
    def verdict(self) -> State:
        """What the last chunk says about all metrics together."""
        states = [self.state(self.last, metric) for metric in self.metrics]
        if "dropped" in states:
            return "dropped"
        return "cannot be told" if "cannot be told" in states else "holds"

    def state(self, chunk: ChunkEstimate, metric: AuditedMetric) -> State:
        """What one chunk says about one metric."""
        estimate = chunk.of(metric.name)
        if not is_supported(chunk) or math.isnan(estimate.value):
            return "cannot be told"
        if is_beyond(estimate.low, estimate.high, estimate, metric):
            return "dropped"
        bad_end = estimate.low if metric.higher_is_better else estimate.high
        if math.isnan(bad_end):  # a method without intervals
            bad_end = estimate.value
            if is_beyond(bad_end, bad_end, estimate, metric):
                return "dropped"
        return "cannot be told" if is_beyond(bad_end, bad_end, estimate, metric) else "holds"


def is_beyond(low: float, high: float, estimate: MetricEstimate, metric: AuditedMetric) -> bool:
    """Whether all from ``low`` to ``high`` is worse than the threshold."""
    return high < estimate.lower_threshold if metric.higher_is_better else low > estimate.upper_threshold


def is_supported(chunk: ChunkEstimate) -> bool:
    """Whether the reference has enough rows like those of the chunk."""
    facts = chunk.overlap
    if facts is None or chunk.fallback is not None:
        return True
    return facts.unsupported_fraction <= MOST_UNSUPPORTED and facts.effective_sample_size >= LEAST_EFFECTIVE_ROWS
