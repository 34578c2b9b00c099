"""Two trainings with the same seed and data differ.

## What it is
The recommender was trained twice on the same table with the same seed, and its lists differ.

## Why it hurts
Nobody can tell any more whether a change of the lists comes from the data, from the code or from chance, and no result
can be reproduced.

## How it is detected
The lists of both trainings are compared user by user; the mean Jaccard similarity of the first k places is below 1. The
difference is then the noise below which this audit sees nothing.

## What cures it
Pass the seed to every generator that the training uses, and use one thread, or algorithms that give the same result
with several.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.recsys.recommender_audit.facts import RecommenderFacts


def find(facts: RecommenderFacts) -> list[Finding]:
    """Find that training is not deterministic."""
    if facts.floor == 1:
        return []
    summary = (
        f"Trained again with the same seed and data, {1 - facts.floor:.1%} of the first {facts.k} places differ (1 − "
        "Jaccard): smaller changes cannot be seen here."
    )
    evidence = Evidence("jaccard, same seed", facts.floor, threshold=1.0)
    return [RULE.finding("warning", 1.0, summary, evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="nondeterministic_training",
    title="Two trainings with the same seed differ",
    find=find,
    doc=__doc__,
    exact=True,
    remedies=("fixed_seeds",),
    family="reproducibility",
)
