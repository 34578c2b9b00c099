"""Every target of a batch is ignored.

## What it is
All targets that a cross-entropy is given equal `ignore_index`.

## Why it hurts
The mean over no target is 0/0: the loss is NaN, and one backward pass of it makes every weight NaN.

## How it is detected
A fact: in a call of `cross_entropy` or `nll_loss` no target differs from `ignore_index`.

## What cures it
```python
loss = F.cross_entropy(z, y, ignore_index=-100)  # bad where a batch may hold nothing else
if (y != -100).any():  # good: such a batch is left out
    loss = F.cross_entropy(z, y, ignore_index=-100)
```

## References
- PyTorch documentation, *torch.nn.CrossEntropyLoss*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a batch without a single target that counts."""
    event = first_event(record, "targets_ignored")
    if event is None:
        return []
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"All {int(event.payload['targets'])} targets of {event.payload['function']}{at_line(event)} are "
            f"ignored at "
            f"step {event.step}: the mean over none of them is NaN. Leave such a batch out.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("label_ignored", 1.0, None, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="targets_ignored",
    title="Every target of a batch is ignored",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
