"""A class is no longer predicted after some rounds.

## What it is
After the last round the classifier predicts fewer classes than there are, though it predicted more at the start.

## Why it hurts
A class that is never predicted is never added with a model label again: the loop cannot bring it back by itself.

## How it is detected
The predicted labels of the test rows hold fewer distinct classes than the true ones in some seed at the last round, and
fewer than in the loop with true labels.

## What cures it
Add more human-labelled rows per round, or draw the labels from the model's probabilities.

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
    """Find that a class got lost."""
    left, true = facts.classes["likeliest label"], facts.classes.get("true label", facts.n_classes)
    if left >= min(true, facts.n_classes):
        return []
    summary = f"After the last round {left} of {facts.n_classes} classes are predicted ({true} with true labels)."
    evidence = Evidence("classes predicted", left, threshold=facts.n_classes, baseline=true)
    return [RULE.finding("error", 1.0, summary, evidence=(evidence,))]


RULE: Rule[LoopFacts] = Rule(
    id="lost_class",
    title="A class is no longer predicted",
    find=find,
    doc=__doc__,
    exact=True,
    remedies=("more_human_rows", "draw_labels"),
    family="drift",
)
