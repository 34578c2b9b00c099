"""A few training rows carry most of the change.

## What it is
Leaving out single rows changes predictions, and half of all squared change is due to a small part of the rows.

## Why it hurts
A wrong label among them moves many decisions, and whoever can insert such rows steers the model.

## How it is detected
An average over bags gives the prediction without each row at no cost. The fewest rows that carry half of the squared
change, beyond what finitely many bags add by chance, are at most 5 % of all rows.

## What cures it
Check these rows and their labels first; an average over bags with smaller bags.

## References
- Soloff, Barber and Willett, *Bagging provides assumption-free stability*, JMLR 2024, arXiv:2301.12600
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.sensitivity.retraining_audit.facts import RetrainingFacts

_FEW = 0.05


def find(facts: RetrainingFacts) -> list[Finding]:
    """Find that a few rows carry half of the change."""
    count = len(facts.carrying_rows)
    if not 0 < count <= _FEW * facts.rows:
        return []
    named = ", ".join(str(row) for row in facts.carrying_rows[:9])
    summary = (
        f"{count} of {facts.rows:,} training rows carry half of the change: {named}{', ...' if count > 9 else ''}."
    )
    where = tuple(f"row {row}" for row in facts.carrying_rows[:9])
    evidence = Evidence("rows that carry half", count, threshold=_FEW * facts.rows)
    return [RULE.finding("info", 0.9, summary, where=where, evidence=(evidence,))]


RULE: Rule[RetrainingFacts] = Rule(
    id="influential_rows",
    title="A few rows carry the change",
    find=find,
    doc=__doc__,
    remedies=("stable_bagging",),
    family="retraining",
)
