"""The report of the audit of synthetic rows."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np

from poise.loops.augmentation_audit.facts import SYNTHETIC, AugmentationFacts
from poise.loops.augmentation_audit.rules import RULES
from poise.report import Figure, Report, Table, Text, line_chart
from poise.rules import findings_of


def augmentation_report(facts: AugmentationFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    return Report(
        "Audit of synthetic training rows",
        _summary(facts),
        findings_of(RULES, facts),
        [_figure(facts), _table(facts), _generator(facts), _notes(facts)],
        meta={
            "ratios": list(facts.ratios),
            "splits": len(facts.plain),
            "rows": facts.rows,
            "train_rows": facts.train_rows,
            "poise": version("poise"),
        },
        verdict=_verdict(facts),
    )


def _verdict(facts: AugmentationFacts) -> str:
    if facts.too_few:
        return "too few rows to tell"
    best = facts.best
    return "none helps" if best is None else f"add {int(facts.ratios[best] * facts.train_rows):,} synthetic rows"


def _summary(facts: AugmentationFacts) -> str:
    plain = f"The held-out error is {facts.plain.mean():.1%} without synthetic rows"
    if facts.too_few:
        return f"{plain}; {facts.rows} rows are too few to see a change of five points."
    best = facts.best
    if best is None:
        gains = [facts.gain(SYNTHETIC, i) for i in range(len(facts.ratios))]
        most = max(range(len(gains)), key=lambda i: gains[i].mean)
        gain = gains[most]
        return (
            f"{plain}; no ratio lowers it for sure (best {facts.ratios[most]:g}: by {100 * gain.mean:.1f} points, 95 % "
            f"interval {100 * gain.low:.1f} to {100 * gain.high:.1f})."
        )
    gain = facts.gain(SYNTHETIC, best)
    return (
        f"{plain} and {facts.error[SYNTHETIC][best].mean():.1%} with {facts.ratios[best]:g} synthetic rows for each of "
        f"{facts.train_rows:,} real ones (gain {100 * gain.mean:.1f} points, 95 % interval {100 * gain.low:.1f} to "
        f"{100 * gain.high:.1f}). Twice the real rows gained {100 * np.nanmean(facts.fewer - facts.plain):.1f} points."
    )


def _figure(facts: AugmentationFacts) -> Figure:
    ratios = np.array([0.0, *facts.ratios])
    lines = {
        name: (ratios, np.concatenate([[facts.plain.mean()], error.mean(1)])) for name, error in facts.error.items()
    }
    return line_chart("Held-out error", lines, "further rows for each real one", "error rate, mean over splits")


def _table(facts: AugmentationFacts) -> Table:
    rows: list[list[object]] = [["real rows only", 0.0, facts.plain.mean(), None, None, None, facts.gap(None)]]
    for name, error in facts.error.items():
        for i, ratio in enumerate(facts.ratios):
            gain = facts.gain(name, i)
            interval = [gain.low, gain.high] if math.isfinite(gain.low) else [None, None]
            gap = float((error[i] - facts.train[name][i]).mean())
            rows.append([name, ratio, error[i].mean(), gain.mean, *interval, gap])
    rows.append(["half of the real rows", None, float(np.nanmean(facts.fewer)), None, None, None, None])
    columns = ["trained on", "for each real row", "error", "gain", "low", "high", "gap"]
    caption = (
        f"Held-out error rates, mean of {len(facts.plain)} splits; gain: how much lower than with real rows only, with "
        "its 95 % interval over splits. Gap: held-out less training error; a smaller gap is no better model."
    )
    return Table("With and without", columns, rows, caption)


def _generator(facts: AugmentationFacts) -> Table:
    rows = [
        ["fraction that are training rows", facts.duplicates.mean(), "0; 1 if it memorises"],
        ["diversity (total variance over that of real rows)", facts.diversity.mean(), "1"],
        ["told apart from held-out rows by a classifier", _shown(facts.distance), "0; 1 if always"],
    ]
    return Table("The generator", ["quantity", "value", "ideal"], rows)


def _shown(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _notes(facts: AugmentationFacts) -> Text:
    seen = (
        "The generator was fitted anew to the training part of each split."
        if facts.refitted
        else "The generator has no fit and was used as it is: if it has seen tested rows, gains are too high."
    )
    missing = f" {facts.missing} splits were not finished." if facts.missing else ""
    return Text(
        f"{seen} All trainings of a split share training and test rows, so gains are paired. Not checked: other "
        f"settings of the generator, other losses than the error rate, and rows of a later time.{missing}",
        "What was measured, and what was not",
    )
