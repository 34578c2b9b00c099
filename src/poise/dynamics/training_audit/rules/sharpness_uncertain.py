"""The sharpness was not measured to the end.

## What it is
The search for the largest eigenvalue of the Hessian was stopped before it reached its tolerance.

## Why it hurts
The true sharpness may lie above the range that the report gives, so the true largest stable learning rate may lie below
its range.

## How it is detected
The Lanczos process ran out of Hessian products, whose number is bounded by the time the audit may take. What it had
found by then is a lower bound.

## What cures it
More time, or fewer examples, so that each product takes less.

```python
audit(model, loss_fn, data, optimizer, batch_size, seconds=300)
audit(model, loss_fn, data, optimizer, batch_size, examples=1024)
```

## References
- Golub and Van Loan, *Matrix computations*, 4th edition, 2013, chapter 10
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
    """Find a sharpness that is only a lower bound."""
    value = facts.decisive
    if value.converged:
        return []
    return [
        RULE.finding(
            "warning",
            _PROBABILITY,
            f"The search for the sharpness was stopped: it is at least {number(value.value - value.error_bound)}, and "
            "may be above the range given. Give more seconds, or fewer examples.",
            evidence=(Evidence("sharpness", value.value),),
        )
    ]


RULE: Rule[TrainingFacts] = Rule(
    id="sharpness_uncertain",
    title="The sharpness was not measured to the end",
    find=find,
    doc=__doc__,
    family="measurement",
)
