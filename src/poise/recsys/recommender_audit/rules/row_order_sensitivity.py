"""The order of the rows changes the recommendations.

## What it is
The same interactions in another row order give other lists, though each row carries its time.

## Why it hurts
An export that sorts its rows in another way, or a deletion that shifts the borders of batches, changes what users see.

## How it is detected
The rows are permuted, times unchanged. The mean Jaccard similarity of the first k places falls by more than 0.05 below
that of two trainings with the same seed.

## What cures it
Sort the table by time, user and item before training, and draw the order of the batches from the seed alone.

## References
- Oh et al., *Rank list sensitivity of recommender systems to interaction perturbations*, CIKM 2022, arXiv:2201.12686
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.recsys.recommender_audit.facts import RecommenderFacts

_CHANGE = 0.05


def find(facts: RecommenderFacts) -> list[Finding]:
    """Find that the lists depend on the order of the rows."""
    other = facts.arm("other row order")
    if other is None or facts.floor - other.jaccard <= _CHANGE:
        return []
    summary = (
        f"With the same rows in another order, the lists share {other.jaccard:.0%} of their first {facts.k} places "
        f"(Jaccard; {facts.floor:.0%} without any change)."
    )
    evidence = Evidence(
        "jaccard, other row order", other.jaccard, threshold=facts.floor - _CHANGE, baseline=facts.floor
    )
    return [RULE.finding("warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[RecommenderFacts] = Rule(
    id="row_order_sensitivity",
    title="The order of the rows changes the recommendations",
    find=find,
    doc=__doc__,
    remedies=("sorted_rows",),
    family="data",
)
