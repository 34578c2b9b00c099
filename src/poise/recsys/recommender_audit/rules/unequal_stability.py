"""Users who are served worse get less stable lists.

## What it is
The lists of users for whom the recommender predicts badly change more than those of users for whom it predicts well.

## Why it hurts
The users who gain least from the recommender also see it change most; an average over all users hides it.

## How it is detected
Users are ordered by the mean reciprocal rank of their held-out interactions under the base. The mean Jaccard similarity
after changes of one interaction is lower in the lowest fifth than in the highest; the 95 % interval of the difference
lies above 0.

## What cures it
Fine-tune with a loss that keeps the order of the last lists; report stability by group.

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
    """Find that users with low accuracy have less stable lists."""
    gap = facts.gap
    if gap is None or not gap.low > 0:
        return []
    summary = (
        f"The lists of the fifth of users with the lowest accuracy keep {gap.mean:.1%} less of their first {facts.k} "
        f"places than those of the highest fifth (95 % interval {gap.low:.1%} to {gap.high:.1%})."
    )
    evidence = Evidence("jaccard, high less low accuracy", gap.mean, threshold=0.0)
    return [RULE.finding("info", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="unequal_stability",
    title="Users who are served worse get less stable lists",
    find=find,
    doc=__doc__,
    remedies=("rank_preserving_fine_tuning",),
    family="users",
)
