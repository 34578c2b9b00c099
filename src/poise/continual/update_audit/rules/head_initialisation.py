"""The initial output weights of new classes break old ones.

## What it is
Rows were added to the output layer for new classes, and their initial weights give old samples high scores for these
classes, or a large first loss.

## Why it hurts
Old samples are classified as new ones before any update. And the large loss of the new classes has a large gradient,
which moves the layers that the old classes rest on.

## How it is detected
Two experiments. Before the first update, the score on old data is measured with and without the outputs of the new
classes: a fall by more than the allowed drop decides it. And the update runs again with rows set from the samples of
the new classes: if that lifts the minimum by at least a third of the gap, the initial rows have caused it.

## What cures it
Rows in the mean direction of the new classes' features, centred on those of old data, as long as the old rows, and
with a bias that lets them win few old samples.

```python
nn.init.normal_(head.weight[old:])  # bad where features are not small
class_mean_init_(head, features, labels, new_classes, old_features=old_features)  # good
```

## References
- Harun and Kanan, *Overcoming the stability gap in continual learning*, TMLR 2024, arXiv:2306.01904
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.continual.update_audit.facts import UpdateFacts

_LEAST = 1 / 3
"""Fraction of the gap that the experiment must close."""


def find(facts: UpdateFacts) -> list[Finding]:
    """Find rows that lower the old score before the first update, or whose replacement closes the gap."""
    at_once = facts.before - facts.before_widened
    label = facts.experiments["head_initialisation"]
    lift, sure = facts.lift(label), facts.lifts(label)
    if at_once > facts.allowed_drop:
        words = (
            f"The outputs of {len(facts.new_classes)} new classes lower the {facts.metric} on old data from "
            f"{number(facts.before, 3)} to {number(facts.before_widened, 3)} before the first update."
        )
        probability = 0.95
    elif facts.breaks and sure >= 0.5 and lift >= _LEAST * facts.depth:
        words = (
            f"With rows of new classes set from their samples, the lowest {facts.metric} on old data is "
            f"{number(lift, 3)} higher: {number(100 * lift / facts.depth, 2)} % of the gap."
        )
        probability = min(sure, 0.95)
    else:
        return []
    evidence = [
        Evidence("old score at update 0", facts.before_widened, facts.before - facts.allowed_drop, facts.before)
    ]
    return [RULE.finding("error", probability, words, evidence=evidence)]


RULE: Rule[UpdateFacts] = Rule(
    id="head_initialisation",
    title="The output rows of new classes are badly set",
    find=find,
    doc=__doc__,
    remedies=("class_mean_rows", "freeze_old_rows", "lower_update_lr"),
    family="head",
)
