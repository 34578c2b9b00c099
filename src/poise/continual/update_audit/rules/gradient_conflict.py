"""The update's gradients point against those of old data.

## What it is
In most updates until the old score is lowest, a small step along the update's gradient raises the loss on old data.

## Why it hurts
Every such step undoes a part of what was learned. Replayed data in the loss reduce the conflict only as far as their
weight goes.

## How it is detected
Along a run of the update the cosine between its gradient and that of a batch of old data is measured at every step. And
the update runs again with projected gradients (GEM, memory strength 0.5, at every step). The finding is made if at
least half of the cosines up to the minimum are negative and the projection lifts the minimum by at least a third of the
gap.

## What cures it
More weight for old data is the cheap remedy, and often as good as the projection, which needs a second backward pass.

```python
loss = 0.5 * new_loss + 0.5 * old_loss  # bad where the two oppose each other
loss = 0.3 * new_loss + 0.7 * old_loss  # good
```

## References
- Lopez-Paz and Ranzato, *Gradient episodic memory for continual learning*, NeurIPS 2017, arXiv:1706.08840
- Hess et al., *Two complementary perspectives to continual learning*, 2024, arXiv:2311.04898
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.continual.update_audit.facts import UpdateFacts

_LEAST, _OPPOSED = 1 / 3, 0.5


def find(facts: UpdateFacts) -> list[Finding]:
    """Find gradients that oppose those of old data, where a projection closes the gap."""
    conflict, label = facts.conflict, facts.experiments["gradient_conflict"]
    lift, sure = facts.lift(label), facts.lifts(label)
    if conflict is None or conflict.fraction < _OPPOSED or not facts.breaks:
        return []
    if sure < 0.5 or not lift >= _LEAST * facts.depth:
        return []
    words = (
        f"In {number(100 * conflict.fraction, 2)} % of the updates up to the minimum the gradient opposes that of old "
        f"data; with projected gradients the lowest {facts.metric} is {number(lift, 3)} higher."
    )
    evidence = [
        Evidence("fraction of opposed gradients", conflict.fraction, _OPPOSED),
        Evidence("cosine at the first update", conflict.first, 0.0),
    ]
    return [RULE.finding("warning", min(sure, 0.95), words, evidence=evidence)]


RULE: Rule[UpdateFacts] = Rule(
    id="gradient_conflict",
    title="Gradients of new and old data oppose each other",
    find=find,
    doc=__doc__,
    remedies=("reweight_old_data", "project_gradients", "lower_update_lr"),
    family="gradients",
)
