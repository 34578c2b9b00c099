"""Layers are used that the model does not know of.

## What it is
A module keeps layers in a Python list or dictionary, makes them in `forward`, or calls a model that is no part of it.
Their parameters are not among `model.parameters()`, so that no optimizer has them.

## Why it hurts
These layers stay as they were initialised (or are initialised anew in every step), are not moved by `.to(device)`, and
are missing in `state_dict()`. The rest of the model learns around them, and the run looks healthy.

## How it is detected
A fact: parameters that the graph of the loss ends in are compared with those of the model and of all optimizers. Models
of their own in evaluation mode (a fixed network within the loss) are not meant.

## What cures it
```python
self.layers = [nn.Linear(8, 8) for _ in range(5)]  # bad
self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(5)])  # good
```

## References
- PyTorch documentation, *torch.nn.ModuleList*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import EXACT, listing, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find layers that take part in the loss and in no optimizer."""
    event = first_event(record, "unregistered")
    if event is None:
        return []
    names, where = tuple(event.payload["names"]), set(event.payload["where"])
    numbers, trained = float(event.payload["numbers"]), float(event.payload["trained"])
    share = numbers / max(numbers + trained, 1.0)
    if "list" in where:
        said = (
            "lie in a Python list or dictionary, where the model does not see them. Use nn.ModuleList or nn.ModuleDict"
        )
    elif "forward" in where:
        said = "are made anew in every forward pass. Make them in __init__"
    else:
        said = "are used in the loss and belong to no optimizer. Give their parameters to it, or freeze them"
    return [
        CAUSE.finding(
            "error" if where != {"model"} else "warning",
            EXACT,
            f"{len(names)} layer(s) ({listing(names)}; {number(100 * share)} % of all parameters) {said}.",
            where=names,
            detected=event.step,
            evidence=[Evidence("unregistered_share", share, None, 0.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="unregistered_layers",
    title="Layers that the model does not know of",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
