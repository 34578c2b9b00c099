"""The learning rate is above the edge of stability.

## What it is
The largest eigenvalue of the Hessian (for an adaptive optimizer: of the Hessian between the roots of what it divides
by) is larger than the threshold that the learning rate sets: 2 / lr for gradient descent, more with momentum.

## Why it hurts
Near this point, distances along the sharpest direction grow with every step. The loss spikes; whether the run then
diverges or settles in a flatter region depends on higher derivatives, which this audit does not measure.

## How it is detected
The sharpness is measured by the Lanczos process, with an error bound; where only a sample of the examples was used,
the curvature of the same direction on other examples widens the range. The finding is made if the whole range of
sharpness over threshold lies above 1.

## What cures it
A learning rate below the largest stable one that the report gives; a warm-up, where the curvature falls by itself
while small steps are taken.

```python
torch.optim.SGD(model.parameters(), lr=3.0)  # bad where 0.8 is the largest stable one of the report
torch.optim.SGD(model.parameters(), lr=0.4)  # good: half of the edge leaves room for sharper batches
```

## References
- Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, ICLR 2021,
  arXiv:2103.00065
- Cohen et al., *Adaptive gradient methods at the edge of stability*, 2022, arXiv:2207.14484
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.dynamics.training_audit.facts import TrainingFacts


_PROBABILITY = 0.95


def find(facts: TrainingFacts) -> list[Finding]:
    """Find a sharpness that is certainly above the optimizer's threshold."""
    distance = facts.distance
    if distance.where != "above":
        return []
    first = max(facts.directions, key=lambda name: facts.directions[name])
    return [
        RULE.finding(
            "error",
            _PROBABILITY,
            f"The sharpness is {number(distance.ratio)} times the threshold of {facts.optimizer} at learning rate "
            f"{number(facts.lr)}: distances along the sharpest direction grow with every step. Up to "
            f"{number(facts.largest_lr[1])} is stable.",
            where=(first,),
            evidence=(Evidence("sharpness", facts.decisive.value, distance.edge),),
        )
    ]


RULE: Rule[TrainingFacts] = Rule(
    id="above_edge_of_stability",
    title="The learning rate is above the edge of stability",
    find=find,
    doc=__doc__,
    family="learning rate",
)
