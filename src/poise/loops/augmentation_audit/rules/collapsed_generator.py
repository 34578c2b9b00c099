"""The generator's rows are hardly diverse.

## What it is
The total variance of the synthetic rows is far below that of the real rows; in the extreme all are one point.

## Why it hurts
A classifier that is trained on them becomes sure in a small region and forgets the rest; in a loop of generations the
variance shrinks further each time.

## How it is detected
The total variance of the synthetic rows is below half of that of the training rows, mean over splits. It is an error
below a twentieth.

## What cures it
A generator with another loss or more capacity, fewer steps of guidance, or real rows in every generation.

## References
- Zheng, Wu and Li, *Toward understanding generative data augmentation*, NeurIPS 2023, arXiv:2305.17476
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.augmentation_audit.facts import AugmentationFacts

_DIVERSITY = 0.5


def find(facts: AugmentationFacts) -> list[Finding]:
    """Find that the generator has collapsed."""
    ratio = float(facts.diversity.mean())
    if ratio >= _DIVERSITY:
        return []
    summary = f"The synthetic rows have {ratio:.1%} of the variance of the real ones, in the first generation already."
    evidence = Evidence("diversity", ratio, threshold=_DIVERSITY, baseline=1.0)
    return [RULE.finding("error" if ratio < 0.05 else "warning", 1.0, summary, evidence=(evidence,))]


RULE: Rule[AugmentationFacts] = Rule(
    id="collapsed_generator",
    title="The generator's rows are hardly diverse",
    find=find,
    doc=__doc__,
    exact=True,
    family="generator",
)
