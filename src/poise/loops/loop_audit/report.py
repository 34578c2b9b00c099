"""The report of the audit of a feedback loop."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np

from poise.loops.feedback_bound import bound_limit, human_rows_needed
from poise.loops.loop_audit.facts import DRAWN, LIKELIEST, MORE_HUMAN, TRUE, LoopFacts
from poise.loops.loop_audit.rules import RULES
from poise.report import Figure, Report, Table, Text, line_chart
from poise.rules import findings_of


def loop_report(facts: LoopFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    causes = {finding.cause for finding in findings}
    unstable = "bias_amplification" in causes or "lost_class" in causes
    return Report(
        "Audit of a feedback loop",
        _summary(facts),
        findings,
        [_figure(facts), _table(facts), _bound(facts), _notes(facts)],
        meta={
            "statistic": facts.statistic,
            "m": facts.m,
            "k": facts.k,
            "rounds": len(facts.bound) - 1,
            "n_start": facts.n_start,
            "tolerance": facts.tolerance,
            "seeds": len(facts.truth),
            "poise": version("poise"),
        },
        verdict="the loop drifts" if unstable else "the loop is stable",
    )


def _summary(facts: LoopFacts) -> str:
    rounds = len(facts.bound) - 1
    start, end = facts.values[LIKELIEST].mean(0)[[0, -1]]
    text = (
        f"The {facts.statistic} goes from {start:.3f} to {end:.3f} in {rounds} rounds (truth {facts.truth.mean():.3f}; "
        f"the bias is at most {facts.bound[-1]:.3f} by the calibration error)."
    )
    others = {
        DRAWN: "labels drawn from the probabilities keep it at",
        MORE_HUMAN: f"{facts.more_human} human rows a round at",
    }
    parts = [f"{words} {facts.values[loop].mean(0)[-1]:.3f}" for loop, words in others.items() if loop in facts.values]
    return f"{text} {'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}." if parts else text


def _figure(facts: LoopFacts) -> Figure:
    rounds = np.arange(len(facts.bound))
    lines = {loop: (rounds, bias.mean(0)) for loop in facts.values for bias in [facts.bias(loop)]}
    start = facts.bias(LIKELIEST).mean(0)[0]
    band = (rounds, np.full(len(rounds), -1.0) * facts.bound, facts.bound)
    title = f"Bias of the {facts.statistic} (band: bound from the calibration error)"
    return line_chart(
        title, lines, "round", "predicted less true, mean over seeds", bands={LIKELIEST: band},
        alt=f"Bias by round; with the likeliest label it starts at {start:+.3f} and ends at "
        f"{facts.bias(LIKELIEST).mean(0)[-1]:+.3f}.",
    )  # fmt: skip


def _table(facts: LoopFacts) -> Table:
    rows = []
    for loop, values in facts.values.items():
        drift, accuracy = facts.drift(loop), facts.accuracy[loop].mean(0)
        interval = [drift.low, drift.high] if math.isfinite(drift.low) else [None, None]
        rows.append([loop, *values.mean(0)[[0, -1]], drift.mean, *interval, accuracy[0], accuracy[-1]])
    columns = ["labels", "start", "end", "drift", "low", "high", "accuracy, start", "accuracy, end"]
    caption = (
        f"{facts.statistic[:1].upper()}{facts.statistic[1:]} of the predicted labels, mean of {len(facts.truth)} "
        f"seeds, with the 95 % interval of the drift. '{TRUE}' is the control without feedback; '{MORE_HUMAN}': "
        f"{facts.more_human} instead of {facts.m}."
    )
    return Table("The loops side by side", columns, rows, caption)


def _bound(facts: LoopFacts) -> Table:
    limit = bound_limit(facts.m, facts.k)
    needed = None
    if facts.tolerance > facts.delta:
        needed = human_rows_needed(facts.k, facts.tolerance, facts.delta)
    rows: list[list[object]] = [
        ["calibration error, data as they are", facts.delta_unshifted],
        ["calibration error, up to 20 % of the labels changed", facts.delta],
        [f"largest bias after {len(facts.bound) - 1} rounds by theory", float(facts.bound[-1])],
        ["largest bias in the long run by theory", None if math.isinf(limit) else facts.delta * limit],
        [f"human rows a round that keep it within {facts.tolerance:g}", needed],
    ]
    caption = (
        "" if needed is not None else "No number of human rows brings the bias below the calibration error itself."
    )
    return Table("What theory allows", ["quantity", "value"], rows, caption or None)


def _notes(facts: LoopFacts) -> Text:
    missing = f" Not checked: {'; '.join(facts.missing)}." if facts.missing else ""
    return Text(
        f"Start of {facts.n_start} rows; each round adds {facts.m} rows with true labels and {facts.k} with the "
        "classifier's, then a fresh classifier is trained. The rows of a round are drawn from the data you gave: the "
        "world itself does not change here, and people do not react to the model. The bound assumes that the "
        "calibration error on shifted training sets stays as measured." + missing,
        "What was measured, and what was not",
    )
