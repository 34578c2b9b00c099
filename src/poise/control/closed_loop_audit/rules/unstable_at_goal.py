"""The loop is unstable at its equilibrium.

## What it is
The linearised closed loop has a direction that grows.

## Why it hurts
However near it starts, the state leaves; only exact starts and exact arithmetic would stay.

## How it is detected
The largest absolute eigenvalue of the sampled closed loop, from central differences, exceeds 1 by more than the
tolerance of its computation.

## What cures it
A gain for the plant as it is at the goal, from a linear quadratic regulator; a shorter sampling period; a sign that
was right.

```python
A, B = torch.func.jacrev(plant, argnums=(0, 1))(goal, u_goal)
K = poise.control.lqr(A, B, Q, R)
```

## References
- Åström and Murray, *Feedback Systems*, 2nd edition, Princeton University Press 2021, chapter 5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find a direction that grows at the equilibrium."""
    if facts.local is None or facts.local.verdict != "unstable":
        return []
    text = (
        f"At the equilibrium a direction grows at rate {number(facts.growth, 3)} per unit of time, by a factor of "
        f"{number(facts.local.radius, 3)} each period."
    )
    return [RULE.finding("error", 0.95, text, where=("goal",), evidence=(Evidence("growth", facts.growth, 0.0),))]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="unstable_at_goal",
    title="The loop is unstable at its equilibrium",
    find=find,
    doc=__doc__,
    family="goal",
)
