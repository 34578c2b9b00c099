"""The report of an audit of an update: curves, causes, remedies, and what was not checked."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np
import torch

from poise.continual.update_audit.facts import UNTREATED, UpdateFacts, UpdateRun
from poise.continual.update_audit.measure import not_tried
from poise.continual.update_audit.remedies import REMEDIES
from poise.continual.update_audit.rules import RULES
from poise.evidence import compare_paired
from poise.report import Code, Figure, Finding, Report, Table, Text, line_chart
from poise.rules import findings_of
from poise.tools.number import number


def update_report(facts: UpdateFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    report = Report(
        f"What the update of {facts.model} breaks",
        _summary(facts),
        findings,
        [_curve(facts), _gap_table(facts), _remedy_table(facts), *_codes(facts, findings)],
        meta={
            "model": facts.model,
            "metric": facts.metric,
            "seeds": list(facts.seeds),
            "allowed_drop": facts.allowed_drop,
            "old_before": facts.before,
            "torch": torch.__version__,
            "poise": version("poise"),
        },
        verdict="breaks old data" if facts.breaks else "within the allowed drop",
    )
    report.add(_experiment_table(facts))
    report.add(Text(_measured(facts), "What was measured"))
    return report.add(Text(_not_checked(facts), "What was not checked"))


def recovery(facts: UpdateFacts, run: UpdateRun) -> float:
    """Return the updates until the old score stays within the allowed drop; infinite if it never does."""
    low = run.old < facts.before - facts.allowed_drop
    if not low.any():
        return 0.0
    last = int(np.flatnonzero(low)[-1])
    return float(run.steps[last + 1]) if last + 1 < len(run.steps) else math.inf


def _summary(facts: UpdateFacts) -> str:
    old, new = facts.ends(UNTREATED)
    words = (
        f"The {facts.metric} on old data falls from {number(facts.before, 3)} to "
        f"{number(facts.before - facts.depth, 3)} during the update and ends at {number(old, 3)}; new data end at "
        f"{number(new, 3)} (means of {len(facts.untreated)} seeds)."
    )
    if not facts.breaks:
        return f"{words} That is within the allowed drop of {number(facts.allowed_drop, 3)}."
    best = facts.cheapest()
    if best is None:
        nearest = max((name for name in facts.remedies if name in facts.runs), key=facts.lift, default=None)
        end = "" if nearest is None else f"; the nearest is: {_named(facts, nearest)}"
        return f"{words} No remedy stays within the allowed drop of {number(facts.allowed_drop, 3)}{end}."
    limit = number(facts.allowed_drop, 3)
    return f"{words} The cheapest remedy within the allowed drop of {limit}: {_named(facts, best)}."


def _named(facts: UpdateFacts, label: str) -> str:
    strength = facts.tuned.get(label)
    return f"{label} ({strength})" if strength else label


def _curve(facts: UpdateFacts) -> Figure:
    series, bands = {}, {}
    best = facts.cheapest()
    shown = {"as it is": UNTREATED} | ({best: best} if best else {})
    for name, label in shown.items():
        runs = facts.runs[label]
        for part in ("old", "new"):
            curves = np.stack([getattr(run, part) for run in runs])
            key = f"{part} data, {name}"
            series[key] = (runs[0].steps, curves.mean(0))
            bands[key] = (runs[0].steps, curves.min(0), curves.max(0))
    mean = np.stack([run.old for run in facts.untreated]).mean(0)
    markers = {"minimum": float(facts.untreated[0].steps[int(mean.argmin())])}
    return line_chart("Scores during the update", series, "update", facts.metric, markers=markers, bands=bands)


def _gap_table(facts: UpdateFacts) -> Table:
    rows = []
    for seed, run in zip(facts.seeds, facts.untreated, strict=False):
        lowest = int(run.old.argmin())
        rows.append(
            [seed, facts.before, run.minimum, int(run.steps[lowest]), recovery(facts, run), run.old[-1], run.new[-1]]
        )
    columns = [
        "Seed",
        "Old, before",
        "Old, minimum",
        "At update",
        "Updates to recover",
        "Old, at the end",
        "New, at the end",
    ]
    caption = (
        "The update as it is. Recovered: from there on within the allowed drop of the score before the update, which "
        "was measured without the outputs of new classes."
    )
    return Table("The gap", columns, rows, caption)


def _remedy_table(facts: UpdateFacts) -> Table:
    rows = [_row(facts, UNTREATED)]
    rows += [_row(facts, label) for label in facts.remedies if label in facts.runs]
    columns = [
        "Remedy",
        "Strength",
        "Old, minimum",
        "Old, at the end",
        "New, at the end",
        "Time ratio",
        "Minimum, change",
        "low",
        "high",
        "Evidence",
        "Within the allowed drop",
    ]
    caption = (
        "Means over seeds. Change: of the old minimum against the update as it is, paired by seed, with its 95 % "
        "interval. Learning rate and weight were chosen on a seed that is not in the table: the highest minimum among "
        "those that learn the new data. Within the allowed drop: old data at any time, new data at the end beside the "
        "update as it is."
    )
    return Table("Remedies", columns, rows, caption)


def _row(facts: UpdateFacts, label: str) -> list[object]:
    old, new = facts.ends(label)
    minima = facts.minima(label)
    base = [label, facts.tuned.get(label), float(minima.mean()), old, new, facts.time_ratio(label)]
    if label == UNTREATED:
        return [*base, None, None, None, None, not facts.breaks]
    paired = compare_paired(facts.minima(UNTREATED)[: len(minima)], minima, lower_is_better=False)
    return [*base, paired.difference, *paired.interval, paired.verdict, facts.keeps(label)]


def _experiment_table(facts: UpdateFacts) -> Table:
    rows: list[list[object]] = [
        ["head initialisation", "outputs of new classes, before the first update", facts.before_widened - facts.before]
    ]
    for cause, label in facts.experiments.items():
        lift = facts.lift(label)
        rows.append([cause.replace("_", " "), f"{label}: the minimum changes by", None if math.isnan(lift) else lift])
    if facts.conflict is not None:
        rows += [
            ["gradient conflict", "cosine of update and old data at the first update", facts.conflict.first],
            ["gradient conflict", "fraction of opposed gradients up to the minimum", facts.conflict.fraction],
            ["gradient conflict", "norm of old gradient over that of the update, first update", facts.conflict.ratio],
        ]
    rows.append(["averaging lag", "served minus trained on new data, second half", facts.lag])
    return Table("Experiments that decide the cause", ["Cause", "Measured", "Value"], rows)


def _codes(facts: UpdateFacts, findings: list[Finding]) -> list[Code]:
    best = facts.cheapest()
    names = [facts.remedies[best]] if best is not None else []
    names += [name for finding in findings for name in finding.remedies]
    entries = [REMEDIES[name] for name in dict.fromkeys(names)]
    return [Code(entry.title, entry.code, entry.language) for entry in entries]


def _measured(facts: UpdateFacts) -> str:
    lines = [
        f"**{facts.metric}** on {facts.samples[0]:,} held-out samples of old data and {facts.samples[1]:,} of new "
        f"data, before the first update and after every {'one' if facts.every == 1 else facts.every}.",
        f"**Cost**: {facts.cost}.",
    ]
    if facts.metric == "accuracy":
        error = math.sqrt(max(facts.before * (1 - facts.before), 0.0) / facts.samples[0])
        lines.append(
            f"**Sampling error** of a score on old data: about {number(error, 2)}; a minimum over many evaluations is "
            "biased downwards by about that much."
        )
    return "\n".join(f"- {line}" for line in lines)


def _not_checked(facts: UpdateFacts) -> str:
    lines = [f"**{label}**: {reason}" for label, reason in facts.not_checked.items()]
    return "\n".join(f"- {line}" for line in [*lines, not_tried()])
