"""Gradients are reset between the backward pass and the step.

## What it is
`zero_grad()` stands after `backward()` and before `optimizer.step()`.

## Why it hurts
The step finds no gradient: no parameter changes (but by weight decay), and nothing is learned.

## How it is detected
A fact: in the first three steps backward passes had run, gradients were reset after them, and all gradients of the
optimizer's parameters were zero or absent at the step.

## What cures it
```python
loss.backward()
optimizer.zero_grad()  # bad
optimizer.step()
optimizer.zero_grad()  # good
loss.backward()
optimizer.step()
```

## References
- PyTorch recipes, *Zeroing out gradients in PyTorch*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find steps that come after their gradients were reset."""
    event = first_event(record, "gradients_lost")
    if event is None:
        return []
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"zero_grad(){at_line(event)} is called after backward() and before step(): no step finds a gradient. "
            "Call it before backward().",
            detected=event.step,
            evidence=[Evidence("gradients_at_step", 0.0, None, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="gradients_lost",
    title="Gradients are reset before the step",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("orphan_parameters",),
)
