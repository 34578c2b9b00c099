"""A run is resumed, and its learning rate is not.

## What it is
The optimizer's state is loaded and with it its learning rate, but the schedule begins anew: its constructor, or its
first step, sets the rate of the start.

## Why it hurts
A run that had cooled down goes on at a rate many times as high: the loss jumps up, and what the end of the schedule had
gained is lost. (Where a warm-up starts again, the rate is too low instead.)

## How it is detected
A fact: the rate that was loaded differs by more than a factor of two from that of the first step, the loaded file
holds a schedule or the script has one, and no schedule was loaded.

## What cures it
```python
optimizer.load_state_dict(file["optimizer"])  # bad: the schedule below sets its own rate
schedule = CosineAnnealingLR(optimizer, 100)
schedule = CosineAnnealingLR(optimizer, 100)
optimizer.load_state_dict(file["optimizer"])
schedule.load_state_dict(file["schedule"])  # good
```

## References
- PyTorch tutorials, *Saving and loading a general checkpoint in PyTorch*
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

FACTOR = 2.0


def find(record: Record) -> list[Finding]:
    """Find a learning rate that is not the one that was loaded."""
    loads = record.events("load_state_dict")
    loaded = [e for e in loads if e.payload.get("what") == "optimizer" and e.payload.get("lr")]
    if not loaded or any(e.payload.get("what") == "scheduler" for e in loads):
        return []
    if not any(e.payload.get("has_schedule") for e in record.events("torch_load")):
        return []
    event, rates = loaded[0], record["lr"]
    first = int(np.searchsorted(rates.steps, event.step))
    if first >= len(rates.steps):
        return []
    before, now, step = float(event.payload["lr"]), float(rates.values[first]), int(rates.steps[first])
    if 1 / FACTOR <= now / before <= FACTOR:
        return []
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The run was resumed with a learning rate of {number(now)}; the checkpoint had {number(before)}, and its "
            "schedule was not loaded. Call schedule.load_state_dict(...) after the schedule is made.",
            onset=step,
            detected=step,
            event=following(find_events(record), step),
            evidence=[Evidence("lr", now, None, before, step)],
        )
    ]


CAUSE = Cause(
    id="lr_lost_on_resume",
    title="The learning rate is lost on resume",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "schedule_jump",
        "warmup_too_short",
        "state_lost_on_resume",
    ),
)
