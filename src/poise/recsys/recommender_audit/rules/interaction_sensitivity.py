"""One interaction more or less changes everyone's lists.

## What it is
After one interaction of one user was changed, the recommender was trained again, and the lists of all users changed.

## Why it hurts
Every night brings thousands of new interactions: the lists reshuffle although nothing of weight happened, and one
manipulated interaction reaches users who have nothing to do with it.

## How it is detected
Random interactions are changed one at a time, with the seed of the base. The mean Jaccard similarity of the first k
places, over users and interactions, falls by more than 0.05 below that of two trainings with the same seed.

## What cures it
Fine-tune with a loss that keeps the order of the last lists while the data are perturbed, start each retraining from
the last weights, or average the scores of several seeds.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
- Oh et al., *FINEST: stabilizing recommendations by rank-preserving fine-tuning*, TKDD 2024, arXiv:2402.03481
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.recsys.recommender_audit.facts import RecommenderFacts

_CHANGE = 0.05


def find(facts: RecommenderFacts) -> list[Finding]:
    """Find that a random change of one interaction changes the lists."""
    if facts.random is None or facts.floor - facts.random <= _CHANGE:
        return []
    count = len(facts.of_kind("random"))
    summary = (
        f"One random interaction of {facts.events:,} changed, and {1 - facts.random:.0%} of the first {facts.k} places "
        f"of all users differ (1 − Jaccard, mean of {count}; {1 - facts.floor:.0%} without any change)."
    )
    evidence = Evidence("jaccard, random change", facts.random, threshold=facts.floor - _CHANGE, baseline=facts.floor)
    return [RULE.finding("warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="interaction_sensitivity",
    title="One interaction changes everyone's lists",
    find=find,
    doc=__doc__,
    remedies=("rank_preserving_fine_tuning", "warm_start", "seed_average"),
    family="data",
)
