"""Softmax runs over the batch in the place of the classes.

## What it is
A softmax or log-softmax has `dim=0`: it makes the examples of a batch compete for one class, where the classes of one
example should compete.

## Why it hurts
What the model says of an example depends on which others are in its batch, and the outputs of one example are no
probabilities. An evaluation with another batch size gives other answers.

## How it is detected
A fact: the graph says that the input of the loss, one row an example, was made by a softmax over dimension 0.

## What cures it
```python
log_p = F.log_softmax(z, dim=0)  # bad
log_p = F.log_softmax(z, dim=1)  # good: over the classes
```

## References
- PyTorch documentation, *torch.nn.functional.log_softmax*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a softmax over the examples of a batch."""
    event = first_event(record, "softmax_over_batch")
    if event is None:
        return []
    name = "log_softmax" if event.payload.get("made_by") == "logsoftmax" else "softmax"
    cure = "Use dim=1" if event.payload.get("function") == "nll_loss" else "Leave it out: cross_entropy applies its own"
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The input of {event.payload['function']}{at_line(event)} was made by a {name} over dimension 0, the "
            f"examples of the batch. {cure}.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("softmax_dimension", 0.0, None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="softmax_over_batch",
    title="Softmax runs over the batch",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "double_softmax",
        "nll_input",
    ),
)
