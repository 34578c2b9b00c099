"""The standard deviation of a single value is taken.

## What it is
`x.std()` divides by `n - 1`: for a batch of one value it is 0/0. It happens in the last batch of an epoch, where the
number of examples is a multiple of the batch size plus one.

## Why it hurts
The result is NaN, and one backward pass of it makes every weight NaN.

## How it is detected
A fact: the first NaN was made by `std` or `var`, in the model or in a variable of the script that holds one value
along its first dimension.

## What cures it
```python
a = (a - a.mean()) / (a.std() + 1e-8)  # bad for a single value
a = (a - a.mean()) / (a.std(correction=0) + 1e-8)  # good: 0 for a single value
loader = DataLoader(data, batch_size=16, drop_last=True)  # good: there is none
```

## References
- PyTorch documentation, *torch.std*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record

STATISTICS = ("std", "var", "std_mean", "var_mean")


def find(record: Record) -> list[Finding]:
    """Find a NaN that is the standard deviation of one value."""
    event = first_event(record, "nonfinite_forward")
    if event is None:
        return []
    shape = event.payload.get("shape")
    in_model = str(event.payload.get("op")) in STATISTICS
    if not in_model and (shape is None or (shape and shape[0] != 1)):
        return []
    name = event.payload["op"] if in_model else event.payload["statistic"]
    what = f" for {event.payload['variable']}" if event.payload.get("variable") else ""
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"{name}{what}{at_line(event)} was taken of a single value at step {event.step}, which is NaN. Use "
            f"{name}(correction=0), or leave out batches of one example (drop_last=True).",
            onset=event.step,
            detected=event.step,
            event=event.step,
            evidence=[Evidence("values", 1.0, 2.0, None, event.step)],
        )
    ]


CAUSE = Cause(
    id="deviation_of_one_value",
    title="The standard deviation of a single value",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),  # and through it to a bad batch and to values that are not finite
)
