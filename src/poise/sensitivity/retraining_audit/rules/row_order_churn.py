"""Decisions flip with the order of the rows.

## What it is
The same rows in another order give another model.

## Why it hurts
An export that sorts its rows in another way changes decisions.

## How it is detected
The model is trained on permuted rows. The fraction of test decisions that differ from the base's exceeds 1 %, and the
upper end of the interval of what two trainings with the same seed differ by, with its 95 % interval over retrainings.
It is an error from 10 % on.

## What cures it
Sort the rows by a key before training; an average over bags.

## References
- Soloff, Barber and Willett, *Bagging provides assumption-free stability*, JMLR 2024, arXiv:2301.12600
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.sensitivity.retraining_audit.facts import RetrainingFacts

_FLIPS, _MANY = 0.01, 0.1


def find(facts: RetrainingFacts) -> list[Finding]:
    """Find that decisions flip with another row order."""
    if "row order" not in facts.churn:
        return []
    rate = facts.rate("row order")
    if rate.low <= max(_FLIPS, facts.floor):
        return []
    ever = facts.churn["row order"].ambiguity
    summary = (
        f"{rate.mean:.1%} of the decisions flip with another row order (95 % interval {rate.low:.1%} to "
        f"{rate.high:.1%}); {ever:.1%} flip at least once in {len(facts.rates['row order'])} retrainings."
    )
    evidence = Evidence("flip rate", rate.mean, threshold=_FLIPS, baseline=facts.same_seed)
    return [RULE.finding("error" if rate.low >= _MANY else "warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RetrainingFacts] = Rule(
    id="row_order_churn",
    title="Decisions flip with the row order",
    find=find,
    doc=__doc__,
    remedies=("stable_bagging",),
    family="retraining",
)
