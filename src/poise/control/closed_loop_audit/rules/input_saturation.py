"""The inputs are often at their limits.

## What it is
Runs from the box spend a good part of their time with inputs at their limits.

## Why it hurts
A saturated input does not respond to the state: the loop is open. Unstable plants leave, and integrators wind up.

## How it is detected
More than a tenth of all input values over all runs are at a limit. It is a warning if starts failed, with more
saturation than there is on average, and information otherwise.

## What cures it
Gains that ask for less, a reference that moves slowly, or stronger actuators; where an unstable plant is too far out,
no controller within the limits returns it.

```python
K = poise.control.lqr(A, B, Q, 10 * R)
```

## References
- Åström and Murray, *Feedback Systems*, 2nd edition, Princeton University Press 2021, section 11.4
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise.report.finding import Evidence, Finding
from poise.rules.rule import Rule

if TYPE_CHECKING:
    from poise.control.closed_loop_audit.facts import ClosedLoopFacts


_OFTEN = 0.1


def find(facts: ClosedLoopFacts) -> list[Finding]:
    """Find inputs that are at their limits for more than a tenth of the time."""
    if facts.saturated is None or facts.saturated <= _OFTEN:
        return []
    text = f"{100 * facts.saturated:.3g} % of the inputs over all runs are at their limits"
    failing = facts.saturated_failing > facts.saturated
    if failing:
        text += f", and {100 * facts.saturated_failing:.3g} % in the runs that fail"
    evidence = (Evidence("saturated fraction", facts.saturated, _OFTEN),)
    return [RULE.finding("warning" if failing else "info", 0.9, f"{text}.", where=("input",), evidence=evidence)]


RULE: Rule[ClosedLoopFacts] = Rule(
    id="input_saturation",
    title="The inputs are often at their limits",
    find=find,
    doc=__doc__,
    family="box",
)
