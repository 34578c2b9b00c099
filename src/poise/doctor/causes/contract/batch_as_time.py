"""A recurrent or attention layer takes the batch for time.

## What it is
Inputs are `(batch, time, feature)`, and the layer was made with `batch_first=False`, the default: it takes the first
dimension for time and the second for the batch.

## Why it hurts
The layer runs along the examples of a batch: the answer for one depends on the others and on their order, and nothing
is read along time. Training goes on without an error, to a loss that is hardly better than a guess.

## How it is detected
A fact, from shapes: the model gives one output for each example of its input, and a layer with `batch_first=False` was
given as many time steps as there are examples (and a second dimension other than 1).

## What cures it
```python
self.rnn = nn.LSTM(3, 32)  # bad for inputs of (batch, time, 3)
self.rnn = nn.LSTM(3, 32, batch_first=True)  # good
```

## References
- PyTorch documentation, *torch.nn.LSTM* and *torch.nn.MultiheadAttention*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a layer that runs along the examples of a batch."""
    event = first_event(record, "batch_as_time")
    if event is None:
        return []
    module, kind = str(event.payload["module"]), event.payload["class"]
    batch, taken = int(event.payload["batch"]), int(event.payload["taken"])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"{module} ({kind}, batch_first=False) takes the {batch} examples of a batch for time steps, and the "
            f"{taken} "
            "time steps for examples: the answer for one example depends on the others. Make it with batch_first=True.",
            where=[module],
            onset=event.step,
            detected=event.step,
            evidence=[Evidence(f"batch_taken_for_time[{module}]", batch, None, taken, event.step)],
        )
    ]


CAUSE = Cause(
    id="batch_as_time",
    title="The batch is taken for time",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
