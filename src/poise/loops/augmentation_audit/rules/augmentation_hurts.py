"""Synthetic rows raise the held-out error.

## What it is
With synthetic rows the classifier errs more often on held-out real rows than without them.

## Why it hurts
Each further row makes the model worse, while the training error and the gap may look better.

## How it is detected
For some ratio the 95 % interval of the paired change of the held-out error over splits lies above 0, and no ratio
lowers it for sure.

## What cures it
Leave them out, give them a smaller weight, or improve the generator until a classifier cannot tell its rows from real
ones.

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
    """Find that synthetic rows hurt."""
    gains = [facts.gain("synthetic rows", i) for i in range(len(facts.ratios))]
    worst = min(range(len(gains)), key=lambda i: gains[i].mean)
    if facts.too_few or facts.best is not None or gains[worst].high >= 0:
        return []
    gain = gains[worst]
    summary = (
        f"With {facts.ratios[worst]:g} synthetic rows for each real one the held-out error rises by "
        f"{-100 * gain.mean:.1f} points (95 % interval {-100 * gain.high:.1f} to {-100 * gain.low:.1f})."
    )
    evidence = Evidence("gain", gain.mean, threshold=0.0)
    return [RULE.finding("warning", 0.95, summary, evidence=(evidence,))]


RULE: Rule[AugmentationFacts] = Rule(
    id="augmentation_hurts",
    title="Synthetic rows raise the error",
    find=find,
    doc=__doc__,
    family="error",
)
