"""The learning rate jumps.

## What it is
The learning rate jumps: up by more than a factor of two between two steps outside the first warm-up, or down to next
to nothing long before the run is over. Behind the second is often a scheduler made for epochs that is stepped once a
batch.

## Why it hurts
Weights that are stable at one learning rate are not stable at one that is several times larger: the loss spikes or
diverges. At a learning rate near zero the rest of the run is wasted.

## How it is detected
From the learning rate before every step. Upwards: the jump counts only if a loss spike or divergence begins within 20
steps after it, so that harmless warm restarts are not reported. Downwards: a fall to a thousandth within one step
followed by 20 such steps, or as many steps below a thousandth of the peak as there were above it (at least 30), while
the loss is still above 20 % of its start and no longer falls. The decays by ten of a step schedule, and schedules that
end at zero, are no jumps.

## What cures it
Make the schedule continuous; call `scheduler.step()` where its unit says.

```python
scheduler = StepLR(optimizer, step_size=10, gamma=0.1)  # meant: every 10 epochs
for batch in loader:
    step(batch)
    scheduler.step()  # bad: every 10 batches. Good: one level out, once per epoch
```

## References
- Goyal et al., *Accurate, large minibatch SGD: training ImageNet in 1 hour*, 2017, arXiv:1706.02677
- Loshchilov and Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017, arXiv:1608.03983
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, number
from poise.doctor.events import breakdowns, find_events, loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

UP, DEAD = 2.0, 1e-3
WITHIN = 20
UNFINISHED = 0.2


def find(record: Record) -> list[Finding]:
    """Find harmful jumps of the learning rate, the first of each direction."""
    lr = record["lr"]
    if len(lr.steps) < 2:
        return []
    return _harmful_rise(record, lr) + _harmful_fall(record, lr)


def _harmful_rise(record: Record, lr: Series) -> list[Finding]:
    values = np.asarray(lr.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values[1:] / values[:-1]
    jumps = [i + 1 for i in np.flatnonzero((ratio > UP) & (values[:-1] > 0)) if not _warming_up(values, int(i))]
    events = breakdowns(find_events(record))
    hits = [
        (event.detected_step, int(lr.steps[i]), i, event)
        for i in jumps
        for event in events
        if lr.steps[i] <= event.step <= lr.steps[i] + WITHIN
    ]
    if not hits:
        return []
    detected, onset, i, event = min(hits, key=lambda hit: hit[:2])
    before, after = float(values[i - 1]), float(values[i])
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The learning rate jumped from {number(before)} to {number(after)} at step {onset}.",
            onset=onset,
            detected=max(detected, onset),
            event=event,
            evidence=[Evidence("lr", after, UP * before, before, onset)],
        )
    ]


def _warming_up(values: np.ndarray, i: int) -> bool:
    # The first warm-up: so far the learning rate has only risen, and rose recently (or the run has just begun).
    past = values[: i + 1]
    return bool(np.all(past[1:] >= past[:-1])) and (i < 3 or past[-1] > past[-4])


def _harmful_fall(record: Record, lr: Series) -> list[Finding]:
    values = np.asarray(lr.values)
    peak = np.maximum.accumulate(values)
    dead = (values <= DEAD * peak) & (peak > 0)
    since = np.zeros(len(values), dtype=int)  # index at which the present stretch of steps near zero began
    for i in range(1, len(values)):
        since[i] = since[i - 1] if dead[i] and dead[i - 1] else i
    here = np.arange(len(values))
    length = here - since + 1
    abrupt = values[since] <= DEAD * values[np.maximum(since - 1, 0)]
    wasted = dead & ((length >= np.maximum(30, since)) | (abrupt & (length >= 20)))
    curve = loss_curve(record)
    for i in map(int, np.flatnonzero(wasted)):
        began, now = int(lr.steps[since[i]]), int(lr.steps[i])
        at, then = np.searchsorted(curve.steps, [now, began], side="right") - 1
        if then < 0 or not curve.level[at] > UNFINISHED * curve.start[at]:
            continue
        high, low = float(peak[i]), float(values[since[i]])
        return [
            CAUSE.finding(
                "error",
                EXACT,
                f"The learning rate fell from its peak {number(high)} to {number(low)} at step {began}, with the loss "
                f"still at {number(float(curve.level[then]))}; nothing is learned since. Is a scheduler made for "
                "epochs stepped once a batch?",
                onset=began,
                detected=now,
                event=began,
                evidence=[Evidence("lr", low, DEAD * high, high, began)],
            )
        ]
    return []


CAUSE = Cause(
    id="schedule_jump",
    title="The learning rate jumps",
    find=find,
    exact=True,
    doc=__doc__,
    family="learning rate",
    leads_to=("attention_logit_growth",),
    remedies=("lr_scale", "warmup"),
)
