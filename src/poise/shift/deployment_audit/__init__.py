"""The audit of a deployed classifier: whether it is still good, before labels arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.report import Report
    from poise.shift.estimation.estimator import PerformanceEstimator
    from poise.shift.estimation.metrics import AnyMetric
    from poise.shift.estimation.thresholds import Threshold


def audit_deployment(
    reference: Any,
    production: Any,
    *,
    y_true: str,
    y_score: str | Mapping[Any, str],
    y_pred: str | None = None,
    metrics: Sequence[str | Callable[..., float] | AnyMetric] = ("accuracy", "roc_auc"),
    chunk: Any = None,
    timestamp: str | None = None,
    features: Sequence[str] | None = None,
    estimator: Callable[..., PerformanceEstimator] | None = None,
    threshold: Threshold | None = None,
    seed: int = 0,
) -> Report:
    """Return whether a deployed classifier still performs as on its reference, with or without labels.

    For each chunk of production: the estimated metrics with intervals, the realised ones where labels exist, how much
    of the reference is left after it was weighted to look like the chunk, how many rows of the chunk have no
    counterpart, and the estimate without weights beside it. The inputs are ranked by how far they moved times how much
    the scores depend on them. The verdict is of the last chunk: *holds*, *dropped*, or *cannot be told*.

    Without labels nobody can see that the relation of labels and inputs has changed; the report says so.

    It fits five small classifiers a chunk (half a second to three seconds for each chunk). Ctrl-C ends it with a report
    of the chunks that are done.

    Args:
        reference: labelled rows that the classifier was not trained on: pandas, Polars or Arrow table.
        production: later rows, with the same columns; the label's column may be missing, or empty.
        y_true: column of labels.
        y_score: column of the positive class's score; of several classes a mapping from class to column.
        y_pred: column of predictions; by default they follow from the scores.
        metrics: names, functions ``f(y_true, y_score)``, or metrics such as :func:`cost_per_row`.
        chunk: rows per chunk, a period such as ``"1M"``, a :class:`ByNumber`, or None for one chunk.
        timestamp: column of times; by default the only column of times, if there is exactly one.
        features: inputs of the classifier; by default all other columns but times, constants and identifiers.
        estimator: a class of this room; :class:`WeightedCBPE` by default.
        threshold: what counts as a drop; three standard deviations over chunks of the reference by default.
        seed: of everything random.

    Raises:
        TypeError: if a table is none.
        ValueError: if a column is missing, scores are not in [0, 1], labels of the reference are missing, of one class
            or not of classes (a regression), or a chunk is smaller than 50 rows.

    References:
        J. Bialek et al. (2024), arXiv:2401.08348.
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.shift.deployment_audit.measure import measure
    from poise.shift.deployment_audit.report import deployment_report
    from poise.shift.estimation.cbpe import WeightedCBPE

    facts = measure(
        reference,
        production,
        estimator=estimator or WeightedCBPE,
        roles={"y_true": y_true, "y_score": y_score, "y_pred": y_pred, "timestamp": timestamp, "features": features},
        metrics=metrics,
        chunk=chunk,
        threshold=threshold,
        seed=seed,
    )
    return deployment_report(facts)
