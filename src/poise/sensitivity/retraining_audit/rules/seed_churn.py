"""Decisions flip with the seed alone.

## What it is
The same model on the same rows with another seed decides otherwise about some people.

## Why it hurts
Whether someone is accepted depends on a number that nobody chose, and each retraining changes it.

## How it is detected
The model is trained with other seeds. The fraction of test decisions that differ from the base's exceeds 1 %, and the
upper end of the interval of what two trainings with the same seed differ by, with its 95 % interval over retrainings.
It is an error from 10 % on.

## What cures it
An average over bags of the model, or over several seeds; a model without randomness.

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
    """Find that decisions flip with another seed."""
    if "seed" not in facts.churn:
        return []
    rate = facts.rate("seed")
    if rate.low <= max(_FLIPS, facts.floor):
        return []
    ever = facts.churn["seed"].ambiguity
    summary = (
        f"{rate.mean:.1%} of the decisions flip with another seed (95 % interval {rate.low:.1%} to {rate.high:.1%}); "
        f"{ever:.1%} flip at least once in {len(facts.rates['seed'])} retrainings."
    )
    evidence = Evidence("flip rate", rate.mean, threshold=_FLIPS, baseline=facts.same_seed)
    return [RULE.finding("error" if rate.low >= _MANY else "warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RetrainingFacts] = Rule(
    id="seed_churn",
    title="Decisions flip with the seed",
    find=find,
    doc=__doc__,
    remedies=("stable_bagging",),
    family="retraining",
)
