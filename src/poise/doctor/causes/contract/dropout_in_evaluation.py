"""Dropout stays on in evaluation.

## What it is
A module calls `F.dropout(x, p)`, whose `training` is true by default: it does not know that `model.eval()` was called.

## Why it hurts
Predictions are random and worse than those of the model that was trained, and two evaluations of it differ.

## How it is detected
A fact: functional dropout is on in a forward pass without gradients, called by a module in evaluation mode, from a line
that does not speak of `training` (who writes `training=True` there wants to sample).

## What cures it
```python
x = F.dropout(x, 0.5)  # bad
x = F.dropout(x, 0.5, training=self.training)  # good
x = self.dropout(x)  # good: an nn.Dropout
```

## References
- PyTorch documentation, *torch.nn.functional.dropout*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find functional dropout that does not follow the mode of its module."""
    event = first_event(record, "dropout_in_evaluation")
    if event is None:
        return []
    module = str(event.payload["module"])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"{module}{at_line(event)} drops units out although it is in evaluation mode. Write "
            "F.dropout(x, p, training=self.training).",
            where=[module],
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("dropout_in_evaluation", 1.0, None, 0.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="dropout_in_evaluation",
    title="Dropout stays on in evaluation",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
)
