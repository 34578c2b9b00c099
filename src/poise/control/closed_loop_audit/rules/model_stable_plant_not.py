"""The model is stable where the plant is not.

## What it is
With the learned model in the loop the goal attracts, or a start comes to it; with the plant it does not.

## Why it hurts
A controller that was tested on the model passes, and fails on the plant.

## How it is detected
The linearised loop decays with the model and grows with the plant; or more than a twentieth of the starts in the box
come near the goal with the model and fail with the plant.

## What cures it
Data from where they differ: the nearest failing start of this report; then a controller with more margin.

```python
X = torch.cat([X, failing_states])
```

## References
- Richards et al., *Learning control-oriented dynamical structure from data*, ICML 2023, arXiv:2302.02529
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_MANY = 0.05


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find a model that hides an instability of the plant."""
    model = facts.model
    if model is None:
        return []
    if model.growth < 0 < facts.growth and facts.local is not None and facts.local.verdict == "unstable":
        text = (
            f"At the goal the loop with the model decays (rate {number(model.growth, 3)}), the loop with the plant "
            "grows "
            f"(rate {number(facts.growth, 3)})."
        )
        return [
            RULE.finding(
                "error", 0.95, text, where=("model",), evidence=(Evidence("growth", facts.growth, 0.0, model.growth),)
            )
        ]
    if model.misled <= _MANY:
        return []
    text = f"{100 * model.misled:.3g} % of the starts come to the goal with the model and fail with the plant."
    return [
        RULE.finding(
            "warning", 0.9, text, where=("model",), evidence=(Evidence("misled fraction", model.misled, _MANY),)
        )
    ]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="model_stable_plant_not",
    title="The model is stable where the plant is not",
    find=find,
    doc=__doc__,
    family="model",
)
