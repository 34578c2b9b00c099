"""The learning rate is above what the curvature permits.

## What it is
An optimizer is stable along a direction only while the curvature there stays below an edge that the learning rate sets:
2 / lr for gradient descent, more with momentum, and the same for Adam once the curvature is seen through its
denominator. Here the largest curvature was *measured*, and it was above the edge when the loss spiked or diverged.

## Why it hurts
Along the sharpest directions each step overshoots the minimum by more than the last one. The oscillation grows, the
loss diverges, units die. (To cross the edge is not harmful by itself: many networks train at it, and move to flatter
regions.)

## How it is detected
`edge_ratio` is `sharpness / edge`. It was above 1.5 in two consecutive measurements, between 20 steps before a
divergence of the loss and 20 steps after it became known. A loss that is NaN from one step to the next, and was not
above its start, did not oscillate, and has another cause. The sharpness is a lower bound, measured on the batch of
the step, so that too few Hessian products make the ratio too low, never too high; a batch is sharper than all data
together, hence 1.5 and not 1. The first ten steps of an adaptive optimizer do not count: its second moment rests on
so few gradients there that the preconditioned curvature may have any size.

## What cures it
A learning rate below the edge; half of it leaves room for batches that are sharper than others. A longer warm-up, if
the curvature falls by itself while small steps are taken; gradient clipping, which shortens the steps that overshoot.

```python
torch.optim.SGD(model.parameters(), lr=1.0)  # bad where the sharpness is 20: the edge is at 0.1
torch.optim.SGD(model.parameters(), lr=0.05)  # good: half of the edge
```

## References
- Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, ICLR 2021,
  arXiv:2103.00065
- Cohen et al., *Adaptive gradient methods at the edge of stability*, 2022, arXiv:2207.14484
- Gilmer et al., *A loss curvature perspective on training instability in deep learning*, ICLR 2022, arXiv:2110.04369
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, evidence_at, number, value_at, weights_replaced_since
from poise.doctor.events import LossEvent, find_events, loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record

ABOVE = 1.5
NEAR = 20  # steps before and after a divergence
CONSECUTIVE = 2  # measurements
SEASONED = 10


def find(record: Record) -> list[Finding]:
    """Find a divergence under a curvature that was measured above the edge."""
    known = [
        (max(step, event.detected_step), event, ratio, step)
        for event in find_events(record)
        if event.kind == "divergence" and _oscillated(record, event)
        for ratio, step in above_edge(record, event)
    ]
    if not known:
        return []
    detected, event, ratio, step = min(known, key=lambda found: (found[0], found[1].step))
    lr = value_at(record["lr"], step)
    advice = f" Half of the edge would be a rate of {number(0.5 * lr / ratio)}." if math.isfinite(lr) else ""
    return [
        CAUSE.finding(
            "error",
            confidence(ratio, ABOVE),
            f"The measured curvature was {number(ratio)} times what is stable at learning rate {number(lr)}; "
            f"{event.phrase}.{advice}",
            onset=weights_replaced_since(record, event.step),
            detected=detected,
            event=event.step,
            evidence=[
                Evidence("edge_ratio", ratio, ABOVE, 1.0, step),
                *evidence_at(record, "sharpness", step),
                Evidence("loss", event.value, None, event.level, event.step),
            ],
        )
    ]


def _oscillated(record: Record, event: LossEvent) -> bool:
    """Return whether the loss rose before it broke down: an oscillation grows, a NaN may come in one step."""
    if math.isfinite(event.value):
        return True
    curve = loss_curve(record)
    before = np.flatnonzero(curve.steps < event.step)
    return bool(len(before)) and event.level > float(curve.start[before[-1]])


def above_edge(record: Record, event: LossEvent) -> list[tuple[float, int]]:
    """Return the ratio above the edge around an event and the step that made it known; nothing if it was not so."""
    ratio = record["edge_ratio"]
    first = max(event.step - NEAR, SEASONED if _is_adaptive(record) else 0)
    near = np.flatnonzero((ratio.steps >= first) & (ratio.steps <= event.detected_step + NEAR))
    values = np.where(np.isfinite(ratio.values), ratio.values, 0.0)
    for i in near[CONSECUTIVE - 1 :]:
        sustained = float(values[i - CONSECUTIVE + 1 : i + 1].min())
        if sustained > ABOVE:
            return [(sustained, int(ratio.steps[i]))]
    return []


def _is_adaptive(record: Record) -> bool:
    return any(first.payload.get("adaptive") for first in record.events("first_step"))


CAUSE = Cause(
    id="lr_above_curvature",
    title="The learning rate is above what the curvature permits",
    find=find,
    exact=False,
    doc=__doc__,
    family="learning rate",
    leads_to=("lr_too_high",),
    remedies=("lr_scale", "warmup", "clip_grad_norm"),
)
