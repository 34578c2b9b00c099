"""The generator returns rows that it was trained on.

## What it is
Most of the synthetic rows equal training rows.

## Why it hurts
They add nothing that repeating the real rows would not, and they publish the training data.

## How it is detected
At least half of the synthetic rows, mean over splits, lie at a training row (within a millionth of the usual distance
between neighbours).

## What cures it
A simpler generator, fewer epochs, or regularisation; then measure again.

## References
- Zheng, Wu and Li, *Toward understanding generative data augmentation*, NeurIPS 2023, arXiv:2305.17476
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.augmentation_audit.facts import AugmentationFacts

_SHARE = 0.5


def find(facts: AugmentationFacts) -> list[Finding]:
    """Find that the generator memorises."""
    share = float(facts.duplicates.mean())
    if share < _SHARE:
        return []
    summary = f"The generator memorises: {share:.0%} of its rows are training rows."
    evidence = Evidence("duplicate share", share, threshold=_SHARE)
    return [RULE.finding("error", 1.0, summary, evidence=(evidence,))]


RULE: Rule[AugmentationFacts] = Rule(
    id="memorising_generator",
    title="The generator returns training rows",
    find=find,
    doc=__doc__,
    exact=True,
    family="generator",
)
