"""The loop amplifies a bias of the classifier.

## What it is
The classifier labels a part of its own next training data. Its labels deviate from the truth in one direction, the next
classifier learns the deviation and adds its own, and a statistic of the labels drifts from round to round.

## Why it hurts
A class, a group or an item loses its place in the data although nothing in the world changed, and the accuracy on the
model's own labels does not show it.

## How it is detected
The absolute bias (the statistic of the predicted labels less that of the true ones) grows from round 0 to the last by
more than the tolerance, and the 95 % interval of the growth over seeds lies above 0. It is an error if it grows by more
than five times the tolerance.

## What cures it
Draw the labels from the model's probabilities instead of taking the likeliest one, or add more human-labelled rows per
round. The report shows both on the same data.

## References
- Taori and Hashimoto, *Data feedback loops: model-driven amplification of dataset biases*, ICML 2023, arXiv:2209.03942
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding, Severity
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.loops.loop_audit.facts import LoopFacts

LIKELIEST = "likeliest label"


def find(facts: LoopFacts) -> list[Finding]:
    """Find that the bias grows."""
    growth, bias = facts.amplification(LIKELIEST), abs(facts.bias(LIKELIEST)).mean(0)
    if growth.mean <= facts.tolerance or growth.low <= 0:
        return []
    summary = (
        f"The absolute bias of the {facts.statistic} grows from {bias[0]:.3f} to {bias[-1]:.3f} in "
        f"{len(bias) - 1} rounds (growth {growth.mean:.3f}, 95 % interval {growth.low:.3f} to {growth.high:.3f})."
    )
    evidence = Evidence("absolute bias", float(bias[-1]), threshold=facts.tolerance, baseline=float(bias[0]))
    severity: Severity = "error" if growth.mean > 5 * facts.tolerance else "warning"
    return [RULE.finding(severity, 0.95, summary, evidence=(evidence,))]


RULE: Rule[LoopFacts] = Rule(
    id="bias_amplification",
    title="The loop amplifies a bias",
    find=find,
    doc=__doc__,
    remedies=("draw_labels", "more_human_rows"),
    family="drift",
)
