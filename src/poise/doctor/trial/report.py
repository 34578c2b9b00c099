"""The report of a trial: both losses in one chart, verdicts, and the lines that make the best remedy permanent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from poise.doctor.events import find_events
from poise.doctor.remedies import parse_remedy
from poise.doctor.trial.compare import Comparison, TrialResult
from poise.doctor.trial.runs import ArmResult
from poise.report import Code, Figure, Finding, Report, Table, Text, line_chart
from poise.store import Series

_WIDE_RANGE = 30.0  # from this ratio of largest to smallest on, a logarithmic axis shows more

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def trial_report(result: TrialResult, findings: Sequence[Finding] | None = None) -> Report:
    """Return the report of a trial.

    Args:
        result: what the trial found.
        findings: what to show as the reason for the trial; by default what was found in the first untreated run.
    """
    if findings is None:
        findings = result.runs()[0].findings if result.runs() else ()
    best, masking = result.best, result.plan.masking
    script = masking.text(result.plan.script)
    report = Report(
        title=f"Trial of {_tried(result)} on {script}",
        summary=best.sentence if best else masking.text(_nothing_helps(result)),
        findings=list(findings),
        meta={"script": script, "args": masking.args, "seeds": result.plan.seeds},
        verdict=_verdict(result),
    )
    shown = best or next((c for c in result.comparisons if c.verdict), None)
    remedies = [()] if shown is None else [(), shown.remedies]
    markers = _markers(findings)
    for figure in (_loss_figure(result, remedies, markers), _attention_figure(result, remedies, markers)):
        if figure is not None:
            report.add(figure)
    report.add(
        Table("Verdicts", _VERDICT_COLUMNS, masking.tree([_verdict_row(c) for c in result.ranked]), _settings(result))
    )
    if best is not None:
        report.add(Code(f"What makes {best.name} permanent", _permanent(best)))
    if result.notices:
        report.add(Text("\n".join(f"- {masking.text(notice)}" for notice in result.notices), title="Limits"))
    report.add(Table("Differences", _DIFFERENCE_COLUMNS, [_difference_row(c) for c in result.ranked], _DIFFERENCE_NOTE))
    report.add(
        Table(
            "Runs",
            _RUN_COLUMNS,
            [_run_row(run) for run in result.arms],
            f"Files are in {masking.text(str(result.folder))}.",
        )
    )
    return report.add(Text(_METHOD, title="How it was compared"))


_METHOD = """\
Each remedy ran with the same seeds as the untreated script. The loss of a run is its mean over the last tenth of the
steps, after as many steps as both runs have, so that a remedy that only slows training down has a higher loss. A run
that stopped early, is not finite, or ends above its first loss counts as its first loss. *Proved* means that the
probability of a lower loss (by more than 1 %), or of fewer divergences, is at least 97.5 %, given these seeds; each
remedy is judged on its own, so with many remedies one may be *proved* by chance. Other data, longer runs and larger
models were not tried."""


def _tried(result: TrialResult) -> str:
    names = [comparison.name for comparison in result.comparisons]
    return names[0] if len(names) == 1 else f"{len(names)} remedies"


def _verdict(result: TrialResult) -> str | None:
    if result.best is not None:
        return f"{result.best.verdict}: {result.best.name}"
    words = {comparison.verdict for comparison in result.comparisons if comparison.verdict}
    return next((word for word in ("no effect", "hurts") if word in words), None)


def _nothing_helps(result: TrialResult) -> str:
    return "No remedy helped. " + " ".join(comparison.sentence for comparison in result.comparisons)


def _permanent(comparison: Comparison) -> str:
    return "\n".join(parse_remedy(spec).code() for spec in comparison.remedies).rstrip() + "\n"


def _markers(findings: Sequence[Finding]) -> dict[str, float]:
    first = next((finding for finding in findings if finding.onset_step is not None), None)
    if first is None or first.onset_step is None:
        return {}
    return {f"{first.cause.replace('_', ' ')} begins": float(first.onset_step)}


def _loss_figure(result: TrialResult, remedies: Sequence[tuple[str, ...]], markers: dict[str, float]) -> Figure | None:
    bands = _bands(result, remedies, _loss)
    if not bands:
        return None
    heights = np.concatenate([high[np.isfinite(high)] for _, _, _, high in bands.values()])
    lows = np.concatenate([low[np.isfinite(low)] for _, _, low, _ in bands.values()])
    wide = bool(lows.min() > 0 and heights.max() / lows.min() > _WIDE_RANGE)
    return _chart("Loss", bands, "loss", wide, markers, result.plan.seeds)


def _attention_figure(
    result: TrialResult, remedies: Sequence[tuple[str, ...]], markers: dict[str, float]
) -> Figure | None:
    bands = _bands(result, remedies, _largest_attention_logit)
    if not bands:
        return None
    return _chart("Largest attention logit", bands, "largest |attention logit|", True, markers, result.plan.seeds)


def _bands(
    result: TrialResult, remedies: Sequence[tuple[str, ...]], read: Callable[[ArmResult], Series]
) -> dict[str, Band]:
    out = {}
    for group in remedies:
        runs = result.runs(group)
        curves = [curve for run in runs if len(curve := read(run))]
        band = over_seeds(curves)
        if np.isfinite(band[1]).any():
            out[runs[0].arm.name] = band
    return out


def _chart(
    title: str, bands: dict[str, Band], y_title: str, log_y: bool, markers: dict[str, float], seeds: int
) -> Figure:
    chart = line_chart(
        title,
        {name: (x, middle) for name, (x, middle, _, _) in bands.items()},
        "step",
        y_title,
        log_y=log_y,
        markers=markers,
        bands={name: (x, low, high) for name, (x, _, low, high) in bands.items()} if seeds > 1 else None,
    )
    caption = f"Median over {seeds} seeds; the band is their range." if seeds > 1 else "One seed."
    return Figure(chart.title, chart.figure, chart.alt, " ".join(filter(None, [caption, chart.caption])))


def _loss(run: ArmResult) -> Series:
    return _EMPTY if run.record is None else run.record["loss"]


def _largest_attention_logit(run: ArmResult) -> Series:
    layers = [] if run.record is None else list(run.record.by_layer("attention_logit_max").values())
    if not layers:
        return _EMPTY
    steps = np.concatenate([layer.steps for layer in layers])
    values = np.concatenate([layer.values for layer in layers])
    unique, position = np.unique(steps, return_inverse=True)
    largest = np.full(len(unique), -np.inf)
    np.maximum.at(largest, position, values)
    return Series(unique, largest)


_EMPTY = Series(np.empty(0, np.int64), np.empty(0))


def over_seeds(curves: Sequence[Series]) -> Band:
    """Return steps, median, minimum and maximum of curves that may have been sampled at different steps.

    Between its own steps a curve keeps its last value; beyond its last step, and where it is not finite, it does not
    count. Where none counts the result is NaN.
    """
    if not curves:
        return _EMPTY.steps, _EMPTY.values, _EMPTY.values, _EMPTY.values
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    rows = np.full((len(curves), len(steps)), np.nan)
    for row, curve in zip(rows, curves, strict=True):
        last = np.searchsorted(curve.steps, steps, side="right") - 1
        known = (last >= 0) & (steps <= curve.steps[-1])
        row[known] = curve.values[last[known]]
    rows[~np.isfinite(rows)] = np.nan
    out = np.full((3, len(steps)), np.nan)
    some = ~np.isnan(rows).all(0)
    if some.any():
        rows = rows[:, some]
        out[:, some] = np.nanmedian(rows, axis=0), np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    return steps, out[0], out[1], out[2]


_VERDICT_COLUMNS = ["remedy", "verdict", "loss without", "loss with", "diverged"]
_DIFFERENCE_COLUMNS = ["remedy", "difference", "95 % interval", "P(lower)", "P(fewer diverge)"]
_RUN_COLUMNS = ["run", "seed", "steps", "last loss", "diverged at", "exit code"]
_DIFFERENCE_NOTE = "Loss with the remedy minus loss without, over pairs of equal seed; Student t interval."


def _settings(result: TrialResult) -> str | None:
    steps = {comparison.steps for comparison in result.comparisons if comparison.verdict}
    pairs = {comparison.losses.n for comparison in result.comparisons if comparison.losses is not None}
    if not steps:
        return None
    return f"After {_span(steps)} steps, over {_span(pairs)} {'pair' if pairs == {1} else 'pairs'} of runs."


def _span(numbers: set[int]) -> str:
    return f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"


def _verdict_row(comparison: Comparison) -> list[str | float | None]:
    losses, rates = comparison.losses, comparison.divergences
    if losses is None or rates is None:
        return [comparison.name, f"not compared: {comparison.reason}", None, None, None]
    diverged = f"{rates.events_a} → {rates.events_b} of {rates.n_a}"
    return [comparison.name, comparison.verdict, losses.mean_control, losses.mean_treated, diverged]


def _difference_row(comparison: Comparison) -> list[str | float | None]:
    losses, rates = comparison.losses, comparison.divergences
    if losses is None or rates is None:
        return [comparison.name, None, None, None, None]
    low, high = losses.interval
    known = losses.n > 1  # one pair has no spread
    interval = f"{low:.3g} to {high:.3g}" if known else None
    return [comparison.name, losses.difference, interval, losses.p_better if known else None, rates.p_better]


def _run_row(run: ArmResult) -> list[str | float | int | None]:
    loss = _loss(run)
    events = [] if run.record is None else find_events(run.record)
    diverged = next((event.step for event in events if event.kind == "divergence"), None)
    last = float(loss.values[-1]) if len(loss) else None
    return [run.arm.name, run.arm.seed, run.steps, last, diverged, run.exit_code]
