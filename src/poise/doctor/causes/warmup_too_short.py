"""The warm-up is too short.

## What it is
The learning rate reached its full value before the curvature had fallen. Early in training the curvature is high; while
steps are small it falls, and the same learning rate is harmless later.

## Why it hurts
The first steps at the full rate move the weights far away. The run may learn from there, but a careful initialisation
is lost, units may have died, and time is lost.

## How it is detected
The loss broke down early (within 50 steps, or twice the time that the learning rate took to rise), the measured
`edge_ratio` (curvature over what is stable, see `lr_above_curvature`) was above 2 by then, and later it stayed below 1
in three consecutive measurements at no less than 90 % of that learning rate, while the loss fell below 90 % of where it
started. So the network trains at this learning rate, but cannot start with it. Until that is known, the finding is
`lr_above_curvature` or `lr_too_high`, which this one then explains.

## What cures it
A warm-up that is about four times longer, or one where there was none.

```python
torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)  # bad if the curvature needs 100 steps
torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=100)  # good
```

## References
- Gilmer et al., *A loss curvature perspective on training instability in deep learning*, ICLR 2022, arXiv:2110.04369
- Goyal et al., *Accurate, large minibatch SGD: training ImageNet in 1 hour*, 2017, arXiv:1706.02677
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import align, confidence, first_run, number, value_at
from poise.doctor.events import LossEvent, find_events, loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

PEAK, CALM = 2.0, 1.0
EARLY = 50
CONSECUTIVE = 3  # measurements
SAME_RATE, LEARNED = 0.9, 0.9


def find(record: Record) -> list[Finding]:
    """Find an early divergence under a learning rate that is stable later in the same run."""
    ratio = record["edge_ratio"]
    known = [
        (calm, event, peak)
        for event in find_events(record)
        if event.kind == "divergence" and np.isfinite(event.value) and _early(record, event)
        for peak in _peak(ratio, event)
        for calm in _calm_since(record, ratio, event)
    ]
    if not known:
        return []
    detected, event, (peak, at) = min(known, key=lambda found: (found[0], found[1].step))
    lr = value_at(record["lr"], event.step)
    return [
        CAUSE.finding(
            "warning",
            confidence(peak, PEAK),
            f"At step {at} the curvature was {number(peak)} times what is stable at learning rate {number(lr)}, and "
            f"{event.phrase}; by step {detected} it had fallen and the same rate did no harm.",
            onset=event.step,
            detected=detected,
            event=event.step,
            evidence=[
                Evidence("edge_ratio", peak, PEAK, 1.0, at),
                Evidence("edge_ratio", value_at(ratio, detected), CALM, 1.0, detected),
            ],
        )
    ]


def _early(record: Record, event: LossEvent) -> bool:
    lr = record["lr"]
    before = np.asarray(lr.values)[lr.steps <= event.step]
    risen = int(np.argmax(before >= 0.99 * before.max())) if len(before) else 0
    return event.step <= max(EARLY, 2 * risen)


def _peak(ratio: Series, event: LossEvent) -> list[tuple[float, int]]:
    """Return the highest ratio up to the detection of an event, if it is too high, and its step."""
    there = np.flatnonzero(ratio.steps <= event.detected_step)
    values = np.where(np.isfinite(ratio.values[there]), ratio.values[there], 0.0)
    if not len(there) or values.max() <= PEAK:
        return []
    i = int(np.argmax(values))
    return [(float(values[i]), int(ratio.steps[i]))]


def _calm_since(record: Record, ratio: Series, event: LossEvent) -> list[int]:
    """Return the step by which the ratio has come down at this learning rate, with the loss falling."""
    curve = loss_curve(record)
    steps = ratio.steps
    learned = align(Series(curve.steps, curve.level), steps) < LEARNED * align(Series(curve.steps, curve.start), steps)
    full = align(record["lr"], steps) >= SAME_RATE * value_at(record["lr"], event.step)
    i = first_run((ratio.values < CALM) & (steps > event.detected_step) & learned & full, CONSECUTIVE)
    return [] if i is None else [int(steps[i])]


CAUSE = Cause(
    id="warmup_too_short",
    title="The warm-up is too short",
    find=find,
    exact=False,
    doc=__doc__,
    family="learning rate",
    leads_to=("lr_above_curvature",),
    remedies=("warmup", "clip_grad_norm", "lr_scale"),
)
