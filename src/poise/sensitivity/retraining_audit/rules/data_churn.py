"""Decisions flip when a few rows are left out.

## What it is
Without one in a hundred of the rows the model decides otherwise about some people.

## Why it hurts
Every deletion request and every correction of a record changes decisions about others.

## How it is detected
The model is trained without a small random fraction of the rows (1 % by default). The fraction of test decisions that
differ from the base's exceeds 1 %, and the upper end of the interval of what two trainings with the same seed differ
by, with its 95 % interval over retrainings. It is an error from 10 % on.

## What cures it
An average over bags of the model, whose change by any one row is bounded; regularisation.

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
    """Find that decisions flip without a few rows."""
    if "rows left out" not in facts.churn:
        return []
    rate = facts.rate("rows left out")
    if rate.low <= max(_FLIPS, facts.floor):
        return []
    ever = facts.churn["rows left out"].ambiguity
    summary = (
        f"{rate.mean:.1%} of the decisions flip without a few rows (95 % interval {rate.low:.1%} to {rate.high:.1%}); "
        f"{ever:.1%} flip at least once in {len(facts.rates['rows left out'])} retrainings."
    )
    evidence = Evidence("flip rate", rate.mean, threshold=_FLIPS, baseline=facts.same_seed)
    return [RULE.finding("error" if rate.low >= _MANY else "warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RetrainingFacts] = Rule(
    id="data_churn",
    title="Decisions flip with a few rows",
    find=find,
    doc=__doc__,
    remedies=("stable_bagging",),
    family="retraining",
)
