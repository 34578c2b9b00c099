"""The report of the audit of retraining."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np

from poise.report import Report, Table, Text, bar_chart
from poise.report.block import Block
from poise.rules import findings_of
from poise.sensitivity.retraining_audit.facts import RetrainingFacts
from poise.sensitivity.retraining_audit.rules import RULES
from poise.tools.listing import listing

_SHOWN = 20


def retraining_report(facts: RetrainingFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    unstable = any(finding.severity != "info" for finding in findings)
    blocks = [*_figure(facts), _table(facts), *_rows(facts), *_per_row(facts), _notes(facts)]
    return Report(
        "Audit of retraining",
        _summary(facts),
        findings,
        blocks,
        meta={
            "model": facts.model,
            "rows": facts.rows,
            "test_rows": facts.test_rows,
            "leave_out": facts.leave_out,
            "n_bags": facts.n_bags,
            "poise": version("poise"),
        },
        verdict="decisions flip when it is trained again" if unstable else "decisions are stable",
    )


def _summary(facts: RetrainingFacts) -> str:
    kind = "decisions flip" if facts.is_classifier else "predictions move"
    if not facts.churn:
        return "No retraining was finished."
    parts = ", ".join(f"{cause} {churn.flip_rate:.1%}" for cause, churn in facts.churn.items())
    total = float(np.mean([churn.flip_rate for churn in facts.churn.values()]))
    text = f"{total:.1%} of the {kind} per retraining: {parts}."
    if len(facts.carrying_rows):
        text += f" {len(facts.carrying_rows)} of {facts.rows:,} rows carry half of the change."
    if facts.bag_churn:
        bag = float(np.mean([churn.flip_rate for churn in facts.bag_churn.values()]))
        text += (
            f" An average over {facts.n_bags} bags brings it to {bag:.1%} (leaving out a row changes an output by at "
            f"most {facts.guarantee:.2f}, for nine in ten rows and any data)."
        )
    if facts.cost_per_flip is not None:
        cost = facts.cost_per_flip * total * facts.test_rows
        text += f" A retraining costs {cost:,.4g} at {facts.cost_per_flip:g} a flip."
    return text


def _figure(facts: RetrainingFacts) -> list[Block]:
    bars = {cause: facts.rate(cause) for cause in facts.churn}
    if not bars:
        return []
    heights = {cause: rate.mean for cause, rate in bars.items()}
    heights |= {f"{facts.n_bags} bags: {cause}": churn.flip_rate for cause, churn in facts.bag_churn.items()}
    errors = {cause: (rate.low, rate.high) for cause, rate in bars.items()}
    return [bar_chart("Decisions that flip", heights, "fraction that differs from the base", errors)]


def _table(facts: RetrainingFacts) -> Table:
    rows: list[list[object]] = [["same seed (control)", "single", 1, facts.same_seed, None, None, None, None]]
    for cause, churn in facts.churn.items():
        rate = facts.rate(cause)
        rows.append(
            [
                cause,
                "single",
                len(facts.rates[cause]),
                rate.mean,
                rate.low,
                rate.high,
                churn.ambiguity,
                churn.discrepancy,
            ]
        )
    for cause, churn in facts.bag_churn.items():
        rows.append([cause, f"{facts.n_bags} bags", 3, churn.flip_rate, None, None, churn.ambiguity, churn.discrepancy])
    columns = ["changed", "model", "retrainings", "flips", "low", "high", "ever", "worst"]
    what = "labels" if facts.is_classifier else f"predictions by more than {facts.tolerance:g} standard deviations"
    caption = (
        f"Fraction of {facts.test_rows:,} {what} that differ from the base, mean over retrainings with its 95 % "
        "interval; 'ever': rows about which any retraining disagrees; 'worst': the retraining that differs most."
    )
    return Table("Retrainings", columns, rows, caption)


def _rows(facts: RetrainingFacts) -> list[Block]:
    if not len(facts.carrying_rows):
        return []
    rows = [[int(row)] for row in facts.carrying_rows[:_SHOWN]]
    more = f" {len(facts.carrying_rows) - _SHOWN} more are not shown." if len(facts.carrying_rows) > _SHOWN else ""
    caption = f"The fewest training rows that carry half of the squared change when left out, worst first.{more}"
    return [Table("Rows that carry the change", ["row"], rows, caption)]


def _per_row(facts: RetrainingFacts) -> list[Block]:
    if not facts.churn:
        return []
    each = np.mean([churn.per_row for churn in facts.churn.values()], axis=0)
    worst = np.argsort(-each, kind="stable")[:_SHOWN]
    rows = [
        [int(row), *(float(churn.per_row[row]) for churn in facts.churn.values())] for row in worst if each[row] > 0
    ]
    if not rows:
        return []
    return [Table("Test rows whose decision flips most", ["test row", *facts.churn], rows, "Fraction of retrainings.")]


def _notes(facts: RetrainingFacts) -> Text:
    text = (
        f"{facts.model}, {facts.rows:,} training rows, {facts.test_rows:,} rows compared; {facts.leave_out:.1%} of the "
        "rows are left out at a time. Not checked: new rows, other settings, whether the flipped decisions were right."
    )
    if not facts.has_seed:
        text += " The model takes no random_state, so other seeds change nothing that poise can set."
    if math.isnan(facts.guarantee) and facts.n_bags:
        text += " The average over bags was not trained: the model has no predict_proba, or time ran out."
    if facts.missing:
        text += f" Not finished: {listing(facts.missing, 10)}."
    return Text(text, "What was measured, and what was not")
