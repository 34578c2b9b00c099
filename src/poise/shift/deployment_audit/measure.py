"""How the audit of a deployed classifier measures: one chunk after the other, with and without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from poise.shift.deployment_audit.facts import AuditedMetric, DeploymentFacts, InputDrift
from poise.shift.deployment_audit.input_drift import input_drift
from poise.shift.estimation.calibration import calibration_error
from poise.shift.estimation.cbpe import CBPE, some_rows
from poise.shift.estimation.chunks import as_chunking, divide
from poise.shift.estimation.estimates import ChunkEstimate
from poise.shift.estimation.estimator import PerformanceEstimator, check_sizes, require_rows, rows_in
from poise.shift.estimation.table_reader import as_table
from poise.shift.estimation.thresholds import Threshold
from poise.tools.progress_bar import fraction_bar

_DRIFT_ROWS = 20_000


def measure(
    reference: Any,
    production: Any,
    *,
    estimator: Callable[..., PerformanceEstimator],
    roles: Mapping[str, Any],
    metrics: Sequence[Any],
    chunk: Any,
    threshold: Threshold | None,
    seed: int,
) -> DeploymentFacts:
    """Return what the audit measures; arguments and errors are those of :func:`audit_deployment`."""
    table = as_table(production, "production")
    roles = {**roles, "timestamp": roles["timestamp"] or only_time(table)}
    made = estimator(metrics, chunk=chunk, threshold=threshold, seed=seed).fit(reference, **roles)
    plain = made if type(made) is CBPE else CBPE(metrics, chunk=chunk, threshold=threshold, seed=seed)
    if plain is not made:
        plain.fit(reference, **roles)
    times = made.reader_.times(production, "production") if made.reader_.roles.timestamp in table.columns else None
    indices = divide(as_chunking(chunk), require_rows(len(table)), times)
    check_sizes([rows_in(index) for index in indices])
    chunks: list[ChunkEstimate] = []
    uncorrected: list[ChunkEstimate] = []
    try:
        with fraction_bar(f"audit of {len(indices)} chunks") as progress:
            for number, index in enumerate(indices):
                progress(number / len(indices), f"chunk {number}, about {_fits(made)} model fits each")
                found = made.chunk_estimate(production, number, index, times)
                uncorrected.append(plain.chunk_estimate(production, number, index, times))
                chunks.append(found)
    except KeyboardInterrupt:
        if not chunks:
            raise
    facts = DeploymentFacts(
        method=type(made).__name__,
        metrics=tuple(AuditedMetric(m.name, made.reference_values_[m.name], m.higher_is_better) for m in made.metrics),
        chunks=tuple(chunks),
        uncorrected=tuple(uncorrected[: len(chunks)]),
        drift=(),
        reference_rows=len(made.reference_),
        calibration_error=_error(made),
        left_out=made.reader_.left_out,
        notes=tuple(dict.fromkeys(made.reader_.notes)),
        planned=len(indices),
        seed=seed,
    )
    return replace(facts, drift=_drift(made, reference, production, indices[facts.last.chunk], seed))


def only_time(table: Any) -> str | None:
    """Return the only column of dates or times, or None if there is none or several."""
    found = [name for name in table.columns if table[name].dtype.is_temporal()]
    return found[0] if len(found) == 1 else None


def _fits(made: PerformanceEstimator) -> int:
    return getattr(made, "folds", 1) if made.needs_features else 0


def _error(made: PerformanceEstimator) -> float:
    certain = made.reference_.certain()
    return max(calibration_error(certain[:, k], made.reference_.score[:, k]) for k in range(certain.shape[1]))


def _drift(
    made: PerformanceEstimator, reference: Any, production: Any, index: Any, seed: int
) -> tuple[InputDrift, ...]:
    reader = made.reader_
    table = as_table(production, "production")
    if not reader.features or not set(reader.features) <= set(table.columns):
        return ()
    rows = some_rows(slice(0, len(made.reference_)), _DRIFT_ROWS, seed)
    before = reader.read(reference, labels=False, name="reference", index=rows)
    after = reader.read(production, labels=False, index=some_rows(index, _DRIFT_ROWS, seed))
    return input_drift(before, after, reader.features, tuple(reader.categories), seed)
