"""The losses of several micro-batches are added up without dividing.

## What it is
A step is made of several backward passes (gradient accumulation), and the loss of each is a mean that is not divided by
their number.

## Why it hurts
The gradient is that many times too large, which is the same as a learning rate that many times too high. Another
number of micro-batches is another learning rate.

## How it is detected
A fact: one line of the script calls `backward()` several times before the first steps, and the loss it is called on
is not divided. Adam, which divides by the size of gradients, and clipping to a norm do not see a factor: there it is
*info*.

## What cures it
```python
for micro in range(8):
    loss(model(x), y).backward()  # bad
    (loss(model(x), y) / 8).backward()  # good
```

## References
- Goyal et al., *Accurate, large minibatch SGD: training ImageNet in 1 hour*, 2017, arXiv:1706.02677
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find gradients that are a sum where a mean was meant."""
    event = first_event(record, "accumulation_not_divided")
    if event is None:
        return []
    count, absorbed = int(event.payload["count"]), bool(event.payload["absorbed"])
    broken = None if absorbed else following(find_events(record), event.step)
    return [
        CAUSE.finding(
            "info" if absorbed else "warning",
            EXACT,
            f"Each step adds up the gradients of {count} backward passes{at_line(event)}, and no loss is divided by "
            f"their "
            f"number: the learning rate is in truth {count} times as high. Write (loss / {count}).backward().",
            onset=event.step,
            detected=event.step,
            event=broken,
            severity_with_event="error",
            evidence=[Evidence("backwards", float(count), None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="accumulation_not_divided",
    title="Losses of micro-batches are not divided",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "warmup_too_short",
        "label_problem",
        "benign_catapult",
    ),
)
