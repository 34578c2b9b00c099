"""Updates are undone between steps.

## What it is
The optimizer changes the weights, and before its next step they are again exactly what they were before the last one:
the loop loads the same checkpoint, or copies a kept version of the weights back, in every step.

## Why it hurts
Nothing is learned, though losses, gradients and updates all look as they should.

## How it is detected
A fact: in five steps in a row among the first twelve, a few parameters were changed by the step and were equal, bit by
bit, to their values before it when the next step began; and they still are after thirty steps. Not where a second
optimizer holds the same parameters: inner loops start again at the same weights on purpose.

## What cures it
```python
for x, y in loader:
    model.load_state_dict(best)  # bad: undoes the last step
    train(x, y)
model.load_state_dict(best)  # good: before the loop, or after it
```

## References
- PyTorch documentation, *torch.nn.Module.load_state_dict*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import EXACT, listing
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find weights that are put back after each step."""
    event = first_event(record, "updates_undone")
    if event is None:
        return []
    names, steps = tuple(event.payload["names"]), int(event.payload["steps"])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"After {steps} steps {listing(names)} are still what they were at first: each step changes them, and "
            "before the next one something puts the old weights back. Look in the loop for load_state_dict(), "
            "copy_() or vector_to_parameters().",
            where=names,
            onset=0,
            detected=event.step,
            evidence=[Evidence("updates_undone", float(steps), None, 0.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="updates_undone",
    title="Updates are undone between steps",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
