"""The loop does not rest at the goal.

## What it is
At the goal the controller's input does not hold the plant: the state moves away from it, to another equilibrium or to
none.

## Why it hurts
The loop comes to rest beside the goal, with a lasting error, or not at all. The linear analysis then belongs to another
point.

## How it is detected
One period of the closed loop from the goal moves the state by more than 1e-6 of the half widths of the box. Newton's
method then looks for the equilibrium; without one in the box the finding is an error.

## What cures it
Give the controller the input that the goal needs, or integrate the error.

```python
u = -K @ (x - goal)  # bad where the goal needs an input
u = u_goal - K @ (x - goal)  # good
```

## References
- Åström and Murray, *Feedback Systems*, 2nd edition, Princeton University Press 2021, chapter 11
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find a goal at which the loop does not rest."""
    if facts.offset == 0:
        return []
    if math.isnan(facts.offset):
        text = "The loop does not rest at the goal, and no equilibrium was found in the box."
        return [RULE.finding("error", 0.95, text, where=("goal",))]
    text = f"The loop rests {number(facts.offset, 3)} half widths of the box away from the goal."
    evidence = (Evidence("offset", facts.offset, 1e-6),)
    return [RULE.finding("warning", 0.95, text, where=("goal",), evidence=evidence)]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="goal_not_an_equilibrium",
    title="The loop does not rest at the goal",
    find=find,
    doc=__doc__,
    exact=True,
    family="goal",
)
