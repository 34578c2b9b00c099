"""Noise on the real rows gains as much as the generator.

## What it is
Synthetic rows lower the held-out error, and so do as many real rows with a little noise.

## Why it hurts
The generator is not needed: what helps is the smoothing, which costs nothing.

## How it is detected
The best ratio gains for sure, and real rows with noise of a tenth of a standard deviation at the same ratio gain at
least as much.

## What cures it
Add noise to the real rows, or regularise the classifier.

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
    """Find that noise does as well."""
    best = facts.best
    if facts.too_few or best is None:
        return []
    gain, noise = facts.gain("synthetic rows", best), facts.gain("real rows with noise", best)
    if noise.mean < gain.mean:
        return []
    summary = (
        f"Real rows with a little noise gain {100 * noise.mean:.1f} points, the generator's rows {100 * gain.mean:.1f}."
    )
    evidence = Evidence("gain of noise", noise.mean, baseline=gain.mean)
    return [RULE.finding("info", 0.9, summary, evidence=(evidence,))]


RULE: Rule[AugmentationFacts] = Rule(
    id="noise_explains_gain",
    title="Noise on real rows gains as much",
    find=find,
    doc=__doc__,
    family="error",
)
