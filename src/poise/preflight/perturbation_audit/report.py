"""The report of a perturbation grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from poise.preflight.perturbation_audit.facts import GridFacts, Outcome
from poise.preflight.perturbation_audit.rules import RULES
from poise.report import Figure, Report, Table, Text, line_chart
from poise.tools.number import number


def grid_report(facts: GridFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    outcomes, seeds = facts.outcomes, facts.seeds
    failing = [outcome for outcome in outcomes if outcome.failed.any()]
    columns = ["condition", *(f"seed {seed}" for seed in seeds), "mean", "change", "outcome"]
    base = facts.base.final
    rows: list[list[object]] = [
        [o.condition, *map(_shown, o.final), _shown(o.final.mean()), _shown((o.final - base).mean()), o.words]
        for o in outcomes
    ]
    caption = (
        f"Training loss, mean over the last quarter of {facts.steps} steps; 'change' is the mean difference to the "
        "base. A run fails that diverges or whose loss falls by less than half of what the base's does."
    )
    meta = {"seeds": list(seeds), "conditions": list(facts.runs), "lr": facts.lr, "steps": facts.steps}
    return Report(
        "Perturbation grid",
        _summary(outcomes, failing),
        findings=[finding for rule in RULES for finding in rule.find(facts)],
        blocks=[Table("Final losses", columns, rows, caption), _figure(facts), _setting(facts)],
        meta=meta | {"final_losses": {o.condition: [_shown(value) for value in o.final] for o in outcomes}},
        verdict="fails under " + ", ".join(o.condition for o in failing) if failing else "trains under all conditions",
    )


def _shown(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _summary(outcomes: Sequence[Outcome], failing: Sequence[Outcome]) -> str:
    base = next(outcome for outcome in outcomes if outcome.condition == "base")
    if base.failed.any():
        return f"The base itself {base.words}: its loss does not fall, so the other conditions cannot be judged."
    head = f"The base trains to a loss of {number(base.final.mean())}."
    lower = [o.condition for o in outcomes if (o.final < base.final).all()]
    hint = f" Lower than the base on every seed: {', '.join(lower)}." if lower else ""
    if not failing:
        return f"{head} So does every perturbation: {', '.join(o.condition for o in outcomes if o is not base)}.{hint}"
    fails = ", ".join(f"{o.condition} {o.words}" for o in failing)
    trains = ", ".join(o.condition for o in outcomes if not o.failed.any() and o is not base)
    return f"{head} {fails}{f'; {trains} trains' if trains else ''}.{hint}"


def _figure(facts: GridFacts) -> Figure:
    steps = np.arange(1, facts.steps + 1)
    lines = {condition: (steps, losses.mean(0)) for condition, losses in facts.runs.items()}
    return line_chart("Training loss", lines, "step", "loss, mean over seeds (a gap where one diverged)")


def _setting(facts: GridFacts) -> Text:
    clip = "no clipping" if facts.clip is None else f"gradients clipped at {facts.clip:g}"
    return Text(
        f"Learning rate {facts.lr:g}, {facts.warmup} of {facts.steps} steps warm-up, cosine to zero, {clip}. "
        "'init' multiplies every weight of two or more dimensions. What may help a model that fails: qk-norm "
        "(`poise.nn.add_qk_norm`), decoupled maps (`poise.nn.apply_sdd`), factors on residual branches "
        "(`poise.nn.stabilize_residuals`); run the grid again with it.",
        title="How it was trained",
    )
