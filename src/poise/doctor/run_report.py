"""The report of a watched run: what is wrong and since when, the evidence, the facts, the remedies."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from poise.doctor.causes import CAUSES
from poise.doctor.cost import Cost
from poise.doctor.diagnose import explained
from poise.doctor.events import find_events
from poise.doctor.masking import MASK
from poise.doctor.optimizer_names import optimizer_names
from poise.report import Code, Figure, Report, Table, Text, line_chart
from poise.report.finding import Finding
from poise.store import Record, Series

_MOST_CURVES = 6
_MOST_REMEDIES = 3


def run_report(record: Record, findings: Sequence[Finding]) -> Report:
    """Make the report of a run.

    Args:
        record: what was recorded.
        findings: what :func:`poise.doctor.diagnose.diagnose` found in it, best first.
    """
    findings = list(findings)
    serious = [finding for finding in findings if finding.severity != "info"]
    report = Report(
        title=f"Run of {_script(record)}",
        summary=_summary(record, serious),
        findings=findings,
        meta=_plain(record.meta),
        verdict=_verdict(record, serious),
    )
    markers = _markers(serious or findings[:1])
    for block in (
        *_charts(record, findings, markers),
        *_evidence(findings),
        _facts(record),
        *_remedies(serious, record),
    ):
        report.add(block)
    return report


def _script(record: Record) -> str:
    return str(record.meta.get("script") or "a training loop")


def _verdict(record: Record, serious: list[Finding]) -> str:
    if serious:
        return CAUSES[serious[0].cause].title
    if _undetermined(record):
        return "undetermined"
    return "healthy" if record.last_step >= 0 else "nothing was recorded"


def _summary(record: Record, serious: list[Finding]) -> str:
    if record.last_step < 0:
        return "No optimizer step was recorded, so there is nothing to say about this run."
    if serious:
        root, others = serious[0], serious[1:]
        more = f" {len(others)} more finding{'s' if len(others) > 1 else ''} below." if others else ""
        return f"{root.summary} (Confidence {100 * root.probability:.0f} %.){more}"
    events = _undetermined(record)
    if events:
        return f"In {record.last_step + 1} steps {events[0]}, but none of the known causes was found."
    return f"Nothing unstable was found in {record.last_step + 1} steps."


def _undetermined(record: Record) -> list[str]:
    # Where several optimizers compete, losses rise by design; a stall may be convergence.
    if len(record.timelines) > 1:
        return []
    return [event.phrase for event in find_events(record) if event.kind == "divergence"]


def _markers(findings: list[Finding]) -> dict[str, float]:
    """Return the steps to mark: onset and event of the first finding, onsets of the next two."""
    out: dict[str, float] = {}
    for finding in findings[:3]:
        if finding.onset_step is not None:
            out[f"onset: {finding.cause.replace('_', ' ')}"] = finding.onset_step
    if findings and findings[0].event_step is not None and findings[0].event_step not in out.values():
        out["event"] = findings[0].event_step
    return out


def _charts(record: Record, findings: list[Finding], markers: dict[str, float]) -> list[Figure]:
    charts = [
        ("Loss", _over_timelines(record, "loss"), "loss"),
        ("Gradient norm before clipping", _over_timelines(record, "grad_norm"), "gradient norm"),
        ("Largest attention logit", _over_layers(record, "attention_logit_max"), "largest attention logit"),
        ("Entropy of attention", _over_layers(record, "attention_entropy"), "entropy, 1 = uniform"),
        ("Learning rate", _changing(_over_timelines(record, "lr")), "learning rate"),
    ]
    shown = {"loss", "grad_norm", "attention_logit_max", "attention_entropy", "lr"}
    for finding in findings[:3]:
        for evidence in finding.evidence:
            signal = evidence.signal
            if signal.partition("[")[0] not in shown and len(record[signal].steps) > 1:
                shown.add(signal.partition("[")[0])
                charts.append((_heading(signal), {signal: record[signal]}, signal.partition("[")[0].replace("_", " ")))
    return [figure for title, curves, axis in charts if (figure := _chart(title, curves, axis, markers)) is not None]


def _heading(signal: str) -> str:
    name, _, layer = signal.partition("[")
    words = name.replace("_", " ").capitalize()
    return f"{words} of {layer.rstrip(']')}" if layer else words


def _chart(title: str, curves: dict[str, Series], axis: str, markers: dict[str, float]) -> Figure | None:
    points = {name: (s.steps, s.values) for name, s in curves.items() if np.isfinite(s.values).any()}
    if not points:
        return None
    return line_chart(title, points, "step", axis, log_y=_wide(points), markers=markers)


def _wide(points: dict[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    """Return whether values are positive and span more than a factor of 30, which a linear axis cannot show."""
    values = np.concatenate([y for _, y in points.values()])
    values = values[np.isfinite(values)]
    return bool(values.min() > 0 and values.max() > 30 * values.min())


def _over_timelines(record: Record, signal: str) -> dict[str, Series]:
    names, alone = optimizer_names(record), len(record.timelines) == 1
    curves = {
        signal.replace("_", " ") if alone else names[prefix]: record.timeline(prefix)[signal]
        for prefix in record.timelines
    }
    return {name: series for name, series in curves.items() if len(series.steps)}


def _over_layers(record: Record, signal: str) -> dict[str, Series]:
    """Return the layers with the most extreme values, as many as a chart can show clearly."""
    layers = {name: series for name, series in record.by_layer(signal).items() if len(series.steps)}
    order = sorted(layers, key=lambda name: -float(np.nanmax(np.nan_to_num(layers[name].values, posinf=1e30))))
    if signal == "attention_entropy":
        order = sorted(layers, key=lambda name: float(np.nanmin(np.nan_to_num(layers[name].values, nan=1.0))))
    return {name: layers[name] for name in order[:_MOST_CURVES]}


def _changing(curves: dict[str, Series]) -> dict[str, Series]:
    return {name: series for name, series in curves.items() if len(np.unique(series.values)) > 1}


def _evidence(findings: list[Finding]) -> list[Table]:
    rows: list[list[Any]] = []
    for finding in findings:
        title = CAUSES[finding.cause].title + (" (explained away)" if explained(finding) else "")
        rows += [[title, e.signal, e.value, e.threshold, e.baseline, e.step] for e in finding.evidence]
    if not rows:
        return []
    return [Table("Evidence", ["finding", "signal", "value", "threshold", "baseline", "step"], rows)]


def _facts(record: Record) -> Table:
    rows: list[list[Any]] = [["script", _script(record)], ["optimizer steps", record.last_step + 1]]
    rows += [["model", _describe_model(event.payload)] for event in record.events("model")[:3]]
    names = optimizer_names(record)
    for prefix in record.timelines:
        name = f"optimizer {names[prefix]}" if len(names) > 1 else "optimizer"
        first = record.timeline(prefix).events("optimizer")[:1]
        rows += [[name, _describe_optimizer(event.payload)] for event in first]
    seconds = record["step_seconds"].values
    if len(seconds):
        rows.append(["time per step (median)", f"{1000 * float(np.nanmedian(seconds)):.2f} ms"])
    for event in record.events("samples")[-1:]:
        taken, left_out = event.payload.get("taken"), event.payload.get("left_out")
        rows.append(["sampled steps", f"{taken}; {left_out} more were due and left out to keep to the overhead"])
    if "cost" in record.meta:
        rows.append(["watching added", Cost.from_dict(record.meta["cost"]).sentence()])
    for event in record.events("script_end")[-1:]:
        detail = event.payload.get("detail")
        rows.append(["end of the script", str(event.payload.get("how")) + (f": {detail}" if detail else "")])
    return Table("Facts", ["what", "value"], rows)


def _describe_model(payload: dict[str, Any]) -> str:
    parameters = payload.get("parameters", {})
    count = sum(math.prod(facts.get("shape", ())) for facts in parameters.values())
    types = sorted({str(facts.get("dtype", "")).removeprefix("torch.") for facts in parameters.values()} - {""})
    return f"{payload.get('class', 'model')}, {count:,} parameters in {len(parameters)} tensors ({', '.join(types)})"


def _describe_optimizer(payload: dict[str, Any]) -> str:
    groups = payload.get("groups", [])
    values = {k: v for k, v in (groups[0] if groups else {}).items() if k != "parameters" and v is not None}
    settings = ", ".join(f"{k}={v}" for k, v in values.items())
    more = f", and {len(groups) - 1} more groups" if len(groups) > 1 else ""
    return f"{payload.get('class', 'optimizer')}({settings}){more}"


def _remedies(serious: list[Finding], record: Record) -> list[Text | Code]:
    """Return what cures the first finding: the advice of its documentation, then code for each remedy."""
    if not serious:
        return []
    from poise.doctor.remedies import parse_remedy  # loads torch, which the report of a healthy run does not need

    cause = CAUSES[serious[0].cause]
    blocks: list[Text | Code] = [
        Text(_section(cause.doc or "", "What cures it"), title=f"What cures it: {cause.title}")
    ]
    remedies = serious[0].remedies[:_MOST_REMEDIES]
    for spec in remedies:
        remedy = parse_remedy(spec)
        blocks.append(Code(f"To make {remedy.spec} permanent", remedy.code()))
    if remedies:
        tries = " ".join(f"--remedy {spec}" for spec in remedies)
        blocks.append(Code("To see which of them works on this run", f"poise trial {tries} {_command(record)}", "bash"))
    return blocks


def _command(record: Record) -> str:
    """Return the script and its arguments; what was masked in them has to be given again."""
    args = record.meta.get("args")
    words = [*(["-m"] if record.meta.get("module") is True else []), _script(record)]
    words += map(str, args) if isinstance(args, list) else []
    masked = "  # replace ***" if any(MASK in word for word in words) else ""
    return shlex.join(words) + masked


def _section(doc: str, heading: str) -> str:
    """Return the text of one section of a cause's documentation."""
    _, _, rest = doc.partition(f"## {heading}\n")
    return rest.partition("\n## ")[0].strip()


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the meta values that a report can hold: scalars, texts, and lists of them."""
    return {k: v for k, v in meta.items() if isinstance(v, str | int | float | bool | list) or v is None}
