"""The report of the audit of a deployed classifier."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from poise.report import Figure, Finding, Report, Table, Text, line_chart
from poise.rules import findings_of
from poise.shift.deployment_audit.facts import (
    DRIFT_THAT_MATTERS,
    EFFECT_THAT_MATTERS,
    AuditedMetric,
    DeploymentFacts,
    is_supported,
)
from poise.shift.deployment_audit.rules import RULES
from poise.tools.number import number

_SHOWN_INPUTS = 20


def deployment_report(facts: DeploymentFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    report = Report(
        "Is the deployed classifier still good?",
        _summary(facts, findings),
        findings,
        meta={
            "method": facts.method,
            "reference_rows": facts.reference_rows,
            "chunks": len(facts.chunks),
            "seed": facts.seed,
            "poise": version("poise"),
        },
        verdict=facts.verdict,
    )
    if len(facts.chunks) > 1:
        for metric in facts.metrics:
            report.add(_figure(facts, metric))
    report.add(_last_table(facts))
    report.add(_support_table(facts))
    if facts.drift:
        report.add(_drift_table(facts))
    report.add(_chunk_table(facts))
    return report.add(Text(_not_checked(facts), "What was measured, and what was not"))


def _summary(facts: DeploymentFacts, findings: list[Finding]) -> str:
    last = facts.last
    values = ", ".join(
        f"{m.name} {number(last.of(m.name).value, 3)} ({number(last.of(m.name).low, 3)} to "
        f"{number(last.of(m.name).high, 3)}; reference {number(m.reference, 3)})"
        for m in facts.metrics
    )
    words = [f"Last chunk, {last.rows:,} rows: {values}."]
    if facts.verdict == "cannot be told":
        words.append("Whether it holds " + _why_not(facts))
    if facts.drift and not any(finding.cause == "input_drift" for finding in findings):
        words.append("No drift of the inputs that matters.")
    return " ".join(words)


def _why_not(facts: DeploymentFacts) -> str:
    if not is_supported(facts.last):
        return "cannot be told: the reference has too few rows like those of the chunk."
    return "cannot be told: the interval reaches beyond the threshold."


def _figure(facts: DeploymentFacts, metric: AuditedMetric) -> Figure:
    x = np.array([chunk.chunk for chunk in facts.chunks])
    found = [chunk.of(metric.name) for chunk in facts.chunks]
    series = {"estimated": (x, np.array([e.value for e in found]))}
    bands = {"estimated": (x, np.array([e.low for e in found]), np.array([e.high for e in found]))}
    if any(e.realised is not None for e in found):
        series["realised"] = (x, np.array([np.nan if e.realised is None else e.realised for e in found]))
    threshold = found[0].lower_threshold if metric.higher_is_better else found[0].upper_threshold
    series["reference"] = (x, np.full(len(x), metric.reference))
    if np.isfinite(threshold):
        series["threshold"] = (x, np.full(len(x), threshold))
    if not all(np.isfinite([*bands["estimated"][1], *bands["estimated"][2]])):
        bands = {}
    return line_chart(f"{metric.name} by chunk", series, "chunk", metric.name, bands=bands)


def _last_table(facts: DeploymentFacts) -> Table:
    last = facts.last
    plain = next(chunk for chunk in facts.uncorrected if chunk.chunk == last.chunk)
    rows = []
    for metric in facts.metrics:
        e = last.of(metric.name)
        threshold = e.lower_threshold if metric.higher_is_better else e.upper_threshold
        without = plain.of(metric.name).value
        state = facts.state(last, metric)
        rows.append([metric.name, metric.reference, e.value, e.low, e.high, without, e.realised, threshold, state])
    columns = ["Metric", "Reference", "Estimate", "Low", "High", "Without weights", "Realised", "Threshold", "Verdict"]
    caption = (
        "Low and high: the interval in which the metric will lie with probability 95 % once labels arrive. Without "
        "weights: the same estimate from the calibration on the unweighted reference."
    )
    return Table("The last chunk", columns, rows, caption)


def _support_table(facts: DeploymentFacts) -> Table:
    rows = []
    for chunk in facts.chunks:
        o = chunk.overlap
        size = None if o is None else o.effective_sample_size
        outside = None if o is None else f"{o.unsupported:,} of {o.target_rows:,}"
        clipped = None if o is None else o.clipped
        rows.append([chunk.chunk, chunk.rows, chunk.domain_auc, size, outside, clipped, chunk.fallback or "weights"])
    columns = [
        "Chunk",
        "Rows",
        "AUC against the reference",
        "Effective sample size",
        "Outside the support",
        "Weights clipped",
        "Used",
    ]
    return Table("Support", columns, rows, "Used: weights, or why the estimate is that without weights.")


def _drift_table(facts: DeploymentFacts) -> Table:
    shown = facts.drift[:_SHOWN_INPUTS]
    rows = [[d.name, d.relevance, d.effect, d.importance] for d in shown]
    more = f" {len(facts.drift) - len(shown)} more inputs are below these." if len(facts.drift) > len(shown) else ""
    caption = (
        f"In the last chunk. It can matter where the effect is at least {EFFECT_THAT_MATTERS} and the relevance, their "
        f"product, at least {DRIFT_THAT_MATTERS}. Effect: Wasserstein distance in standard deviations, or total "
        f"variation of categories. Importance: fraction of what the scores depend on.{more}"
    )
    return Table("Inputs that moved", ["Input", "Relevance", "Effect", "Importance"], rows, caption)


def _chunk_table(facts: DeploymentFacts) -> Table:
    rows = [
        [c.chunk, c.first_time, c.last_time, m.name, e.value, e.low, e.high, e.realised, e.sampling_error or None,
         facts.state(c, m)]
        for c in facts.chunks
        for m in facts.metrics
        for e in [c.of(m.name)]
    ]  # fmt: skip
    columns = ["Chunk", "From", "To", "Metric", "Estimate", "Low", "High", "Realised", "Error of drawing", "Verdict"]
    return Table("All chunks", columns, rows)


def _not_checked(facts: DeploymentFacts) -> str:
    lines = [
        f"**{facts.method}** on {facts.reference_rows:,} labelled rows of the reference. None of them may have been "
        "used to train the classifier; that cannot be checked.",
        "**Not checked: whether the relation of labels and inputs changed.** Without labels no method can see it; "
        "chunks with labels show it.",
    ]
    if len(facts.chunks) < facts.planned:
        lines.append(f"**Interrupted** after {len(facts.chunks)} of {facts.planned} chunks.")
    if facts.left_out:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in facts.left_out.items())
        lines.append(f"**Not used as inputs:** {reasons}. Name the inputs with features= to choose others.")
    if not facts.drift:
        lines.append("**Not checked: drift of the inputs.** Production has not all inputs of the reference.")
    lines += [f"**Note.** {note}" for note in facts.notes]
    return "\n".join(f"- {line}" for line in lines)
