"""The schedule takes fewer steps than it was made for.

## What it is
A schedule is made for all batches of a run, and `schedule.step()` is called once an epoch, or never. Or it is made for
all batches, and gradients are accumulated over several of them before the one step in which it is called.

## Why it hurts
Only the first part of the schedule is used. A one-cycle or warm-up stays near its small first rate and the run learns
slowly; a decay never comes, and the run ends with the noise of the first rate.

## How it is detected
A fact, known when the run ends: the length of the schedule (`total_steps`, `T_max`, `total_iters`,
`num_training_steps`) is the number of steps that the optimizer took, or of backward passes where gradients are
accumulated, and the schedule took a fraction of them. Known at its second step where `OneCycleLR` was told how many
steps an epoch has, and as many lie between two of its steps.

## What cures it
```python
schedule = OneCycleLR(optimizer, 0.1, epochs=10, steps_per_epoch=len(loader))
for epoch in range(10):
    for x, y in loader:
        train(x, y)
        schedule.step()  # good
    schedule.step()  # bad
```

## References
- PyTorch documentation, *torch.optim.lr_scheduler.OneCycleLR*
- Smith and Topin, *Super-convergence: very fast training of neural networks using large learning rates*, 2018,
  arXiv:1708.07120
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a schedule of which only the beginning is used."""
    event = first_event(record, "schedule_steps_missing")
    if event is None:
        return []
    facts = event.payload
    steps, taken, length = int(facts["steps"]), int(facts["taken"]), int(facts["length"])
    made = f"{facts['class']}{at_line(event)} was made for {length} steps"
    if facts["how"] == "never":
        said = f"{made}, as many as the optimizer took, and schedule.step() was never called. Call it with each batch."
    elif facts["how"] == "accumulation":
        said = (
            f"{made}, one for each backward pass, and took {taken}: one for each step of the optimizer. Make it for "
            f"{steps} steps."
        )
    else:
        said = (
            f"{made} and took {taken} while the optimizer took {steps}: one an epoch. Call schedule.step() with each "
            "batch, or make it for the number of epochs."
        )
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            said,
            onset=0,
            detected=event.step,
            evidence=[Evidence("schedule_steps", float(taken), float(length), float(steps), event.step)],
        )
    ]


CAUSE = Cause(
    id="schedule_steps_missing",
    title="The schedule takes too few steps",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("lr_too_small",),
)
