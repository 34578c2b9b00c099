"""The optimizer's eps is zero in half precision.

## What it is
Weights are kept in float16, and the `eps` that Adam or RMSprop adds to its denominator is below half of the smallest
float16 number (`2**-24`, about 6e-8): it is rounded to zero. The usual `1e-8` is.

## Why it hurts
The second moment is kept in float16, too, where squares of gradients below 2.4e-4 are zero. A coordinate whose second
moment is zero is divided by zero: its first update is NaN or infinite, and so is every loss after it.

## How it is detected
A fact: the type of the weights, the class of the optimizer and its `eps`. It is an error once a loss or a gradient is
not finite, a warning before.

## What cures it
Keep the weights in float32 and compute in half precision under `torch.autocast`. Where they must be float16, an `eps`
of 1e-4 or more. A smaller learning rate does not help.

```python
model.half()
torch.optim.Adam(model.parameters(), lr=1e-3)  # bad: eps = 1e-8 is 0 there
torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)  # good enough
with torch.autocast("cuda", dtype=torch.float16):
    ...  # good: weights and moments stay in float32
```

## References
- Micikevicius et al., *Mixed precision training*, ICLR 2018, arXiv:1710.03740
- Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, arXiv:1412.6980
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, listing, number, optimizer_class, parameter_types
from poise.report.finding import Evidence, Finding
from poise.store import Record

SMALLEST = 2.0**-25  # what is below is rounded to 0 in float16


def find(record: Record) -> list[Finding]:
    """Find weights in float16 under an optimizer whose eps is zero there."""
    types = {name: kind.removeprefix("torch.") for name, kind in parameter_types(record).items()}
    for event in record.events("optimizer"):
        for group in event.payload.get("groups", []):
            eps = group.get("eps")
            names = [name for name in group.get("parameters", []) if types.get(name) == "float16"]
            if isinstance(eps, int | float) and eps <= SMALLEST and names:
                return [_finding(record, event.step, names, float(eps))]
    return []


def _finding(record: Record, step: int, names: list[str], eps: float) -> Finding:
    broken = [
        int(s.steps[i]) for s in (record["loss"], record["grad_norm"]) for i in np.flatnonzero(~np.isfinite(s.values))
    ]
    first = min((at for at in broken if at >= step), default=None)
    harm = "" if first is None else f"; from step {first} on the loss or its gradients were not finite"
    return CAUSE.finding(
        "warning",
        EXACT,
        f"The eps of {optimizer_class(record)}, {number(eps)}, is 0 in float16, the type of {listing(names)}: where "
        f"the second moment is 0, too, the update is divided by zero{harm}.",
        where=names,
        onset=step,
        detected=step,
        event=first,
        severity_with_event="error",
        evidence=[Evidence("eps", eps, SMALLEST, None, step)],
    )


CAUSE = Cause(
    id="eps_underflow",
    title="The optimizer's eps is zero in half precision",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("attention_logit_growth",),
    remedies=("adam_eps=1e-4",),
)
