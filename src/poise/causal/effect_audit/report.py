"""The report of the audit of an effect."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np

from poise.causal.average_effect import AverageEffect
from poise.causal.effect_audit.facts import EffectFacts, Flip
from poise.causal.effect_audit.rules import (
    RULES,
    constant_effect_predicts_better,
    sign_hangs_on_few_rows,
    significance_hangs_on_few_rows,
)
from poise.report import Figure, Finding, Report, Table, Text, scatter_chart
from poise.rules import findings_of
from poise.tools.number import number

_CHANGES = {
    "sign": "the other sign",
    "significance": "the other significance, with the same sign",
    "sign and significance": "significant with the other sign",
}


def effect_report(facts: EffectFacts) -> Report:
    """Return the report.

    Args:
        facts: what was measured.
    """
    findings = findings_of(RULES, facts)
    report = Report(
        "Stability of an average effect",
        effect_summary(facts),
        findings,
        [_estimates(facts), _flips(facts)],
        meta={
            "estimator": facts.estimator,
            "rows": facts.rows,
            "seeds": list(facts.seeds),
            "fits": facts.fits,
            "seconds": round(facts.seconds, 2),
            "estimate": facts.average.estimate,
            "stderr": None if math.isnan(facts.average.stderr) else facts.average.stderr,
            "poise": version("poise"),
        },
        verdict=_verdict(facts, findings),
    )
    if len(facts.seeds) > 1:
        report.add(_seed_figure(facts))
    report.add(_numbers(facts))
    for name, words in facts.forwarded.items():
        report.add(Text(f"```text\n{words}\n```", f"The object's own {name}"))
    return report.add(Text(_limits(facts), "What was not checked"))


def effect_summary(facts: EffectFacts) -> str:
    """Return the result in plain sentences."""
    sentences = [f"The average effect is {facts.average}."]
    sentences.append(_few_rows_sentence(facts))
    if len(facts.seeds) > 1:
        sentences.append(f"Seeds move it by {number(facts.seed_spread, 2)} standard errors.")
    if len(facts.learners) > 1:
        sentences.append(f"Other learners spread it over {number(facts.learner_spread, 2)} standard errors.")
    return " ".join(sentence for sentence in sentences if sentence)


def _few_rows_sentence(facts: EffectFacts) -> str:
    flip = facts.flip("sign")
    if flip is None:
        return ""
    if flip.predicted is None:
        return f"No half of the {flip.units} decides its sign."
    if flip.happened:
        return f"Its sign changes without {flip.dropped} of {flip.of} {flip.units} ({_percent(flip)})."
    if not flip.dropped:
        return f"Its sign would change without about {flip.predicted} of {flip.of} {flip.units}, too many to leave out."
    few = f"{flip.predicted} of {flip.of} {flip.units}"
    return f"Its sign was to change without {few}, but did not without {flip.dropped}."


def _percent(flip: Flip) -> str:
    return f"{number(100 * flip.dropped / flip.of, 2)} %"


def _verdict(facts: EffectFacts, findings: list[Finding]) -> str:
    # Effects that vary may be noise while their average is stable.
    causes = {finding.cause for finding in findings} - {constant_effect_predicts_better.RULE.id}
    if causes & {sign_hangs_on_few_rows.RULE.id, significance_hangs_on_few_rows.RULE.id}:
        return "hangs on a few rows"
    if causes:
        return "unstable"
    return "not settled" if facts.flip("sign") is None else "stable"


def _estimates(facts: EffectFacts) -> Table:
    named = {f"this {facts.estimator}": facts.average, **facts.controls}
    named |= {f"doubly robust, learners: {name}": average for name, average in facts.learners.items()}
    rows = [[name, average.estimate, *_error(average)] for name, average in named.items()]
    caption = "Simple estimates and other learners show what the choice of the estimator changes."
    return Table("Estimates", ["estimator", "average effect", "standard error", "low", "high"], rows, caption)


def _error(average: AverageEffect) -> list[float | None]:
    return [None] * 3 if math.isnan(average.stderr) else [average.stderr, *average.interval]


def _flips(facts: EffectFacts) -> Table:
    rows: list[list[object]] = []
    for flip in facts.flips:
        predicted = f"{flip.predicted} of {flip.of} {flip.units}" if flip.predicted is not None else "more than half"
        refit = f"{flip.dropped} left out: {number(flip.estimate, 3)}" if flip.dropped else "not refitted"
        if flip.dropped and not math.isnan(flip.stderr):
            refit += f", standard error {number(flip.stderr, 3)}"
        listed = ", ".join(map(str, flip.first)) + (", ..." if flip.dropped > len(flip.first) else "")
        rows.append(
            [_CHANGES[flip.change], predicted, refit, "yes" if flip.happened else "no", listed if flip.dropped else ""]
        )
    caption = "By influence functions, then checked by fitting again without these rows (numbered from 0)."
    columns = ["change", "by influence", "refitted", "changed", "which, first"]
    return Table("How few rows change the conclusion", columns, rows, caption)


def _seed_figure(facts: EffectFacts) -> Figure:
    seeds = np.array(facts.seeds, dtype=float)
    return scatter_chart("Estimate of each seed", {"average effect": (seeds, facts.by_seed)}, "seed", "average effect")


def _numbers(facts: EffectFacts) -> Table:
    rows: list[list[object]] = [["rows", facts.rows], ["fits", facts.fits]]
    if len(facts.seeds) > 1:
        rows += [
            ["median over seeds", float(np.median(facts.by_seed))],
            ["standard deviation over seeds", float(np.std(facts.by_seed, ddof=1))],
            ["the same in standard errors", facts.seed_spread],
        ]
    if facts.overlap is not None:
        overlap = facts.overlap
        rows += [
            ["effective sample size of inverse propensities", overlap.effective],
            [f"rows with a propensity outside [{overlap.clip:g}, {1 - overlap.clip:g}]", overlap.clipped],
            ["smallest propensity", overlap.lowest],
            ["largest propensity", overlap.highest],
            ["part of the inverse-propensity weight in 1 % of rows", overlap.top],
        ]
    if len(facts.learners) > 1:
        rows.append(["spread over learners in standard errors", facts.learner_spread])
    if facts.constant is not None:
        constant = facts.constant
        rows += [
            ["mean squared error with effects that vary", constant.loss],
            ["the same with one effect for all", constant.constant_loss],
            ["difference (above 0: one effect is better)", constant.difference],
            ["its standard error", constant.stderr],
            ["standard deviation of effects", constant.spread],
        ]
    return Table("Numbers", ["quantity", "value"], rows)


def _limits(facts: EffectFacts) -> str:
    lines = [f"**{name}**: {why}." for name, why in facts.not_checked.items()]
    lines.append(
        "**Assumptions.** That treatment is as good as random given the covariates, and that one row's treatment does "
        "not change another's outcome, cannot be seen in the data."
    )
    return "\n".join(f"- {line}" for line in lines)
