"""The loss is a sum over the batch, where its mean was meant.

## What it is
The loss has `reduction="sum"` or ends in `.sum()`, and is not divided by the number of examples.

## Why it hurts
The gradient grows with the batch: 64 examples are a learning rate 64 times as high, and the last, smaller batch is
another one.

## How it is detected
A fact: the graph says that the first loss is a sum of at least 8 numbers, and it is not divided. It is harm only
where a spike or divergence follows. Adam, which divides by the size of gradients, and clipping do not see a factor.

## What cures it
```python
loss = F.mse_loss(model(x), y, reduction="sum")  # bad with a rate for means
loss = F.mse_loss(model(x), y)  # good
```

## References
- Goyal et al., *Accurate, large minibatch SGD: training ImageNet in 1 hour*, 2017, arXiv:1706.02677
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.doctor.events import breakdowns, find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a sum over a batch whose gradient was too large."""
    event = first_event(record, "loss_is_sum")
    broken = None if event is None else following(breakdowns(find_events(record)), event.step)
    if event is None or broken is None:
        return []
    count = int(event.payload["count"])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The loss{at_line(event)} is a sum of {count} numbers: its gradient is {count} times that of their "
            f"mean. Use "
            'reduction="mean", or divide it.',
            onset=event.step,
            detected=broken.detected_step,
            event=broken,
            evidence=[Evidence("summed_numbers", float(count), None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="sum_reduction",
    title="The loss is a sum over the batch",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "warmup_too_short",
        "benign_catapult",
    ),
)
