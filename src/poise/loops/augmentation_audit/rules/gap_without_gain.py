"""The gap between training and test falls, the error does not.

## What it is
With synthetic rows the difference between held-out and training error shrinks because the training set has become
harder, not because the model is better.

## Why it hurts
Whoever watches the gap takes this for better generalisation.

## How it is detected
At the largest ratio the gap is below half of the gap without synthetic rows, and the held-out error is not lower for
sure at any ratio.

## What cures it
Judge by the held-out error alone.

## References
- Zheng, Wu and Li, *Toward understanding generative data augmentation*, NeurIPS 2023, arXiv:2305.17476
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.augmentation_audit.facts import AugmentationFacts


def find(facts: AugmentationFacts) -> list[Finding]:
    """Find that only the gap falls."""
    before, after = facts.gap(None), facts.gap(len(facts.ratios) - 1)
    if facts.too_few or facts.best is not None or before <= 0.01 or after >= before / 2:
        return []
    summary = f"The gap falls from {100 * before:.1f} to {100 * after:.1f} points, the held-out error does not."
    evidence = Evidence("gap", after, threshold=before / 2, baseline=before)
    return [RULE.finding("info", 0.95, summary, evidence=(evidence,))]


RULE: Rule[AugmentationFacts] = Rule(
    id="gap_without_gain",
    title="The gap falls, the error does not",
    find=find,
    doc=__doc__,
    family="error",
)
