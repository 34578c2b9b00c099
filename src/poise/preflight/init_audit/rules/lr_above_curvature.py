"""The learning rate is too high for the first step.

## What it is
The learning rate that the optimizer is set to is above the largest one that is stable for the curvature of the loss at
initialisation.

## Why it hurts
The first steps overshoot along the sharpest direction. SGD often survives a few times its limit by a jump to a flatter
region; beyond that the run diverges in its first steps.

## How it is detected
The sharpness is measured by Hessian products on this batch. The finding is made if the learning rate of SGD is above 2
/ sharpness (an error from 4 times on), or that of an adaptive optimizer above 100 times its limit, which fresh second
moments overstate. Where a warm-up was simulated on copies and reaches the learning rate, it is a warning only.

## What cures it
A warm-up, during which the curvature falls, or a lower learning rate.

```python
torch.optim.SGD(model.parameters(), lr=1.0)  # bad where the report gives 0.05
torch.optim.SGD(model.parameters(), lr=0.03)  # good, or a warm-up from 0.03
```

## References
- Gilmer et al., *A loss curvature perspective on training instability in deep learning*, ICLR 2022, arXiv:2110.04369
- Cohen et al., *Adaptive gradient methods at the edge of stability*, 2022, arXiv:2207.14484
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.preflight.init_audit.facts import InitFacts


_SURVIVED = 4.0  # times its limit, which SGD often survives by a jump to a flatter region
_FRESH = 100.0  # and a fresh adaptive optimizer
_PROBABILITY = 0.8


def find(facts: InitFacts) -> list[Finding]:
    """Find a learning rate above what is stable at the first step."""
    if facts.set_lr is None or facts.lr is None or facts.lr.cold is None or not facts.lr.cold > 0:
        return []
    lr, limit, warm = facts.set_lr, facts.lr.cold, facts.lr.warm
    is_sgd = facts.lr.name == "SGD"
    if lr <= limit * (1 if is_sgd else _FRESH):
        return []
    text = (
        f"The learning rate {number(lr)} is {number(lr / limit)} times the largest stable one of {facts.lr.name} at "
        f"the first step ({number(limit)})."
    )
    reached = warm is not None and lr <= warm
    if warm is not None and reached:
        text += f" After a warm-up of {len(facts.lr.warmed or ()) - 1} steps {number(warm)} is stable."
    return [
        RULE.finding(
            "error" if is_sgd and lr > limit * _SURVIVED and not reached else "warning",
            _PROBABILITY,
            text,
            evidence=(Evidence("lr", lr, limit),),
        )
    ]


RULE: Rule[InitFacts] = Rule(
    id="lr_above_curvature",
    title="The learning rate is too high for the first step",
    find=find,
    doc=__doc__,
    family="learning rate",
    remedies=(
        "warmup",
        "lr_scale",
    ),
)
