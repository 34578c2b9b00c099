"""The classifier is calibrated on today's data and not on data that has drifted.

## What it is
On the training data as they are, the classifier predicts each label about as often as it occurs. After a part of the
labels was changed, as a loop changes them, it no longer does.

## Why it hurts
A forecast of the drift from today's calibration error is too low: the loop moves the data to where the error is larger.

## How it is detected
Fractions of 5, 10 and 20 % of the training labels are set to each label in turn. The largest calibration error exceeds
the one on the unchanged data by more than the tolerance.

## What cures it
Draw the labels from the model's probabilities, and measure the calibration again after each round.

## References
- Taori and Hashimoto, *Data feedback loops: model-driven amplification of dataset biases*, ICML 2023, arXiv:2209.03942
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.loop_audit.facts import LoopFacts


def find(facts: LoopFacts) -> list[Finding]:
    """Find that the calibration error grows with a shift of the labels."""
    if facts.delta - facts.delta_unshifted <= facts.tolerance:
        return []
    summary = (
        f"The calibration error of the {facts.statistic} is {facts.delta_unshifted:.3f} on the data as they are and "
        f"{facts.delta:.3f} after 5 to 20 % of the labels were changed."
    )
    evidence = Evidence("calibration error", facts.delta, baseline=facts.delta_unshifted)
    return [RULE.finding("info", 0.9, summary, evidence=(evidence,))]


RULE: Rule[LoopFacts] = Rule(
    id="shift_miscalibration",
    title="Calibrated on today's data only",
    find=find,
    doc=__doc__,
    remedies=("draw_labels",),
    family="calibration",
)
