"""An optimizer is made anew again and again for the same parameters.

## What it is
The optimizer is created within the loop over epochs (or in a function that is called for each of them).

## Why it hurts
Its state starts at zero each time. Adam's second moment and the momentum are those of the last few gradients: steps are
of the wrong size at the start of every epoch, and the loss jumps there.

## How it is detected
A fact: the third optimizer of one class and learning rate is made for the same parameters, and none of those before
lived longer than it looks back, `1 / (1 - beta2)` steps for Adam.

## What cures it
```python
for epoch in range(40):
    optimizer = Adam(model.parameters())  # bad
    train(model, optimizer)
optimizer = Adam(model.parameters())  # good: made once
for epoch in range(40):
    train(model, optimizer)
```

## References
- Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, arXiv:1412.6980
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find optimizers whose state is thrown away before it was of use."""
    event = first_event(record, "optimizer_recreated")
    if event is None:
        return []
    steps, memory = float(event.payload["steps"]), float(event.payload["memory"])
    if steps >= memory:
        return []
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            f"A new {event.payload['class']} is made{at_line(event)} for the same parameters every {number(steps)} "
            f"steps, "
            f"and its state, which looks back {number(memory)} steps, starts at zero each time. Make it once, "
            f"before the "
            "loop.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("optimizer_steps", steps, memory, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="optimizer_recreated",
    title="An optimizer is made anew again and again",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "state_lost_on_resume",
        "warmup_too_short",
    ),
)
