"""Another seed gives other recommendations.

## What it is
Trained on the same data with another seed, the recommender lists mostly other items.

## Why it hurts
Every retraining that starts from a fresh seed changes what users see without any new information, and comparisons of
models on a few lists are comparisons of seeds.

## How it is detected
The lists of a training with another seed share, on average over users, less than half of their first k places with
those of the base (mean Jaccard similarity below 1/2), and less than two trainings with the same seed.

## What cures it
Start each retraining from the last weights, fine-tune with a loss that keeps the order of the last lists, or average
the scores of several seeds.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.recsys.recommender_audit.facts import RecommenderFacts

_SHARED = 0.5


def find(facts: RecommenderFacts) -> list[Finding]:
    """Find that the lists depend on the seed."""
    other = facts.arm("other seed")
    if other is None or other.jaccard >= min(_SHARED, facts.floor):
        return []
    summary = (
        f"With another seed and the same data, the lists share {other.jaccard:.0%} of their first {facts.k} places "
        f"(Jaccard); held-out recall is {other.recall:.3f} against {facts.recall:.3f}."
    )
    evidence = Evidence("jaccard, other seed", other.jaccard, threshold=_SHARED, baseline=facts.floor)
    return [RULE.finding("warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="seed_sensitivity",
    title="Another seed gives other recommendations",
    find=find,
    doc=__doc__,
    remedies=("warm_start", "rank_preserving_fine_tuning", "seed_average"),
    family="reproducibility",
)
