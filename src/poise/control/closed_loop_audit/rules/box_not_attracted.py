"""Some starts in the box do not come to the goal.

## What it is
Starts in the box were followed; some were not near the goal at the end: they diverged, rest or circle elsewhere, or
are still on their way.

## Why it hurts
Local stability says nothing about them. A disturbance that puts the state there ends the operation.

## How it is detected
At least one of the sampled starts ended further from the goal than one hundredth of the half widths of the box. It is
an error if less than half of the box is attracted, with 95 % confidence.

## What cures it
More input authority, a controller for the whole box, or a box that is smaller in operation; the nearest failing start
says in which direction. If starts are only slow, give a longer horizon.

```python
audit_closed_loop(plant, controller, x0=goal, box=box, dt=dt, horizon=60.0)
```

## References
- Åström and Murray, *Feedback Systems*, 2nd edition, Princeton University Press 2021, section 5.4
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule
from poise.tools.number import number

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find starts that do not come to the goal."""
    region = facts.region
    if region is None or region.nearest_failing is None:
        return []
    low, high = region.interval
    where = ", ".join(number(float(x), 3) for x in region.nearest_failing)
    text = (
        f"{100 * region.fraction:.3g} % of the box come to the goal (95 % interval {100 * low:.3g} to {100 * high:.3g} "
        f"%); the nearest start that does not is ({where}), {number(region.nearest_distance, 3)} half widths away."
    )
    evidence = (Evidence("attracted fraction", region.fraction, 1.0),)
    return [RULE.finding("error" if high < 0.5 else "warning", 0.95, text, where=("box",), evidence=evidence)]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="box_not_attracted",
    title="Some starts in the box do not come to the goal",
    find=find,
    doc=__doc__,
    family="box",
)
