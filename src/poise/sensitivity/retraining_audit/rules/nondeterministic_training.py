"""Two trainings with the same seed differ.

## What it is
The model was trained twice with the same seed on the same rows, and some decisions differ.

## Why it hurts
No difference between two versions can be traced to its cause, and no decision can be reproduced.

## How it is detected
The predictions of two trainings with the same seed are compared. Any difference counts.

## What cures it
Pass the seed to every part, use one thread, or deterministic algorithms.

## References
- Soloff, Barber and Willett, *Bagging provides assumption-free stability*, JMLR 2024, arXiv:2301.12600
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.sensitivity.retraining_audit.facts import RetrainingFacts


def find(facts: RetrainingFacts) -> list[Finding]:
    """Find that training is not deterministic."""
    if facts.same_seed == 0:
        return []
    summary = f"{facts.same_seed:.1%} of the decisions differ between two trainings with the same seed and rows."
    return [RULE.finding("warning", 1.0, summary, evidence=(Evidence("flip rate", facts.same_seed, threshold=0.0),))]


RULE: Rule[RetrainingFacts] = Rule(
    id="nondeterministic_training",
    title="Two trainings with the same seed differ",
    find=find,
    doc=__doc__,
    exact=True,
    remedies=("fixed_seeds",),
    family="retraining",
)
