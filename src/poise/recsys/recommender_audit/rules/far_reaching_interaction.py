"""Some interactions change the lists more than random ones.

## What it is
An early interaction that reaches many later ones, through its user and its item, changes the lists more than a random
interaction does.

## Why it hurts
Whoever knows the log can choose the interaction that disturbs most, and cleaning old rows costs more stability than
cleaning recent ones.

## How it is detected
The interactions with the most descendants in the graph of interactions, and the earliest, are changed one at a time.
The mean Jaccard similarity of the first k places is lower, by more than 0.03, than the mean over random interactions.

## What cures it
Keep these rows when old data are cleaned, limit the length of the sequences that are learned from, and fine-tune with a
loss that keeps the order of the last lists.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.recsys.recommender_audit.facts import RecommenderFacts

_CHANGE = 0.03


def find(facts: RecommenderFacts) -> list[Finding]:
    """Find the interaction that changes the lists most, if it changes them more than random ones do."""
    chosen = facts.of_kind("chosen")
    if facts.random is None or not chosen:
        return []
    worst = min(chosen, key=lambda arm: arm.jaccard)
    if facts.random - worst.jaccard <= _CHANGE:
        return []
    summary = (
        f"The interaction in row {worst.row} ({worst.name}; it reaches {worst.reached:,} later ones) changes "
        f"{1 - worst.jaccard:.0%} of the first {facts.k} places, random ones {1 - facts.random:.0%}."
    )
    evidence = Evidence("jaccard", worst.jaccard, threshold=facts.random - _CHANGE, baseline=facts.random)
    return [RULE.finding("info", 0.9, summary, where=(f"row {worst.row}",), evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="far_reaching_interaction",
    title="Some interactions change the lists most",
    find=find,
    doc=__doc__,
    remedies=("rank_preserving_fine_tuning",),
    family="data",
)
