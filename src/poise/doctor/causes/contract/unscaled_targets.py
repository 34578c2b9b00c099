"""The targets of a regression are far from the scale of the model's outputs.

## What it is
Targets are prices of 250,000 or years of 2,000, and the model, whose outputs are of order 1 at first, has to reach
them by its own weights.

## Why it hurts
The loss and its gradients are many powers of ten large. An optimizer whose steps do not grow with the gradient (Adam,
or any with clipping) needs as many steps as the targets are far away; one whose steps do grow diverges.

## How it is detected
The first residuals of a squared loss are above 30 in the root mean square, and after 100 steps the loss is still above
their variance: the model is worse than the mean of the targets, which needs no model.

## What cures it
```python
mean, std = y.mean(), y.std()
loss = F.mse_loss(model(x), (y - mean) / std)  # good; for predictions: model(x) * std + mean
```

## References
- LeCun et al., *Efficient backprop*, 1998
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import confidence, number, value_at
from poise.doctor.events import loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record

LARGE, STEPS = 30.0, 100


def find(record: Record) -> list[Finding]:
    """Find a regression that has not even reached the mean of its targets."""
    event, curve = first_event(record, "first_residuals"), loss_curve(record)
    if event is None:
        return []
    mean, std = float(event.payload["mean"]), float(event.payload["std"])
    size = math.hypot(mean, std)
    # What was recorded has to be that squared loss, and no other beside it.
    is_this_loss = abs(value_at(record["loss"], event.step) - size**2) <= 0.05 * size**2
    if size <= LARGE or not is_this_loss:
        return []
    late = np.flatnonzero(curve.steps >= event.step + STEPS)
    if not len(late) or curve.level[late[0]] <= std**2:
        return []
    step, level = int(curve.steps[late[0]]), float(curve.level[late[0]])
    return [
        CAUSE.finding(
            "error",
            confidence(size, LARGE),
            f"The targets are about {number(-mean)} with a spread of {number(std)}, far from what a model gives at "
            f"first. "
            f"After {STEPS} steps the loss is {number(level)}, above their variance of {number(std**2)}. "
            f"Standardise them: "
            "(y - mean) / std.",
            onset=event.step,
            detected=step,
            evidence=[Evidence("loss", level, std**2, size**2, step)],
        )
    ]


CAUSE = Cause(
    id="unscaled_targets",
    title="Regression targets are not scaled",
    find=find,
    exact=False,
    doc=__doc__,
    family="contract",
    leads_to=(
        "label_problem",
        "warmup_too_short",
    ),
)
