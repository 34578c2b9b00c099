"""The learning rate schedule is stepped with every batch, and has used itself up.

## What it is
`schedule.step()` stands in the loop over batches, and the schedule was made for epochs.

## Why it hurts
A decay that was meant for a hundred epochs is over after a hundred batches, and the rate is then next to nothing; a
cosine goes down and up again many times.

## How it is detected
A fact: the schedule has taken a step for nearly every step of the optimizer, and its rate has fallen below a
ten-thousandth of the first (`StepLR`, `MultiStepLR`, `ExponentialLR`; `PolynomialLR` and the schedules of transformers
only after twice the steps that they were made for) or is in the second cycle of a `CosineAnnealingLR`.

## What cures it
```python
for epoch in range(100):
    for x, y in loader:
        train(x, y)
        schedule.step()  # bad
    schedule.step()  # good
```

## References
- PyTorch documentation, *torch.optim: how to adjust learning rate*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a schedule for epochs that runs through in batches."""
    event = first_event(record, "schedule_per_batch")
    if event is None:
        return []
    steps, length = int(event.payload["steps"]), event.payload.get("length")
    decays = event.payload["how"] == "decays"
    how = "the rate is next to zero" if decays else f"the rate rises again every {length} steps"
    return [
        CAUSE.finding(
            "error" if decays else "warning",
            EXACT,
            f"{event.payload['class']}{at_line(event)} has taken a step with each of {steps} batches, and {how}. Call "
            "schedule.step() once an epoch, or make it for the number of batches.",
            onset=0,
            detected=event.step,
            evidence=[Evidence("schedule_steps", float(steps), None, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="schedule_per_batch",
    title="The schedule is stepped with every batch",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "schedule_jump",
        "label_problem",
        "warmup_too_short",
    ),
)
