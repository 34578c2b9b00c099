"""The layers below the head move so far that old classes lose their features.

## What it is
The update changes the hidden layers within its first steps, and the output rows of old classes no longer fit their
features.

## Why it hurts
At the start the loss on old data is at its minimum and its gradient is small: nothing resists the gradient of the new
data until old samples are already wrong. The old score falls at once and recovers only as replayed data pull it back.

## How it is detected
An experiment: the update runs again with all layers but the head frozen. If that lifts the minimum of the old score by
at least a third of the gap, the hidden layers have caused it.

## What cures it
A smaller learning rate below the head, changes of low rank, or averaged weights that are served while the trained ones
pass through the gap. What a remedy costs on new data is in the table.

```python
AdamW(model.parameters(), lr=1e-3)  # bad for an update of a trained model
AdamW(model.parameters(), lr=1e-4)  # good, if the new data are still learned
```

## References
- De Lange et al., *Continual evaluation for lifelong learning: identifying the stability gap*, ICLR 2023,
  arXiv:2205.13452
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
    """Find a gap that closes when only the head is trained."""
    label = facts.experiments["hidden_plasticity"]
    lift, sure = facts.lift(label), facts.lifts(label)
    if not (facts.breaks and sure >= 0.5 and lift >= _LEAST * facts.depth):
        return []
    new = facts.ends(label)[1]
    words = (
        f"With all layers but the head frozen, the lowest {facts.metric} on old data is {number(lift, 3)} higher: "
        f"{number(100 * lift / facts.depth, 2)} % of the gap. New data then end at {number(new, 3)}."
    )
    evidence = [
        Evidence("old score, lowest, head only", facts.before - facts.depth + lift, None, facts.before - facts.depth)
    ]
    return [RULE.finding("warning", min(sure, 0.95), words, evidence=evidence)]


RULE: Rule[UpdateFacts] = Rule(
    id="hidden_plasticity",
    title="Hidden layers move too far",
    find=find,
    doc=__doc__,
    remedies=("lower_update_lr", "low_rank_update", "serve_average", "reweight_old_data"),
    family="hidden layers",
)
