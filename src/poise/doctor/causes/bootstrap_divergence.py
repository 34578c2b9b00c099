"""Bootstrapped targets run away.

## What it is
The targets are made by a copy of the model (temporal differences), and model and targets chase each other upwards: each
update raises the predictions, and with them the next targets.

## Why it hurts
Values grow without bound, far above what any sequence of rewards is worth. The policy that follows them is arbitrary.

## How it is detected
A copy of the model makes the targets (event `bootstrapped`), and the median of the last 11 losses is above a thousand
times the largest of the first five. In health the loss grows too, as values grow from 0 to what they are worth, but
with the square of a part of them.

## What cures it
Update the copy more rarely (every few hundred steps) or more slowly (`tau` of 0.005), take the smaller of two critics,
clip rewards or the temporal difference (Huber loss), lower the learning rate.

```python
target.load_state_dict(q.state_dict())  # bad in every step
if step % 200 == 0:
    target.load_state_dict(q.state_dict())  # good
```

## References
- Mnih et al., *Human-level control through deep reinforcement learning*, Nature 2015
- van Hasselt et al., *Deep reinforcement learning and the deadly triad*, 2018, arXiv:1812.02648
- Fujimoto, van Hoof and Meger, *Addressing function approximation error in actor-critic methods*, ICML 2018,
  arXiv:1802.09477
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number
from poise.doctor.events import loss_curve, trailing_median
from poise.report.finding import Evidence, Finding
from poise.store import Record

FAR = 1e3
FIRST = 5


def find(record: Record) -> list[Finding]:
    """Find a loss that runs away while a copy of the model makes its targets."""
    made = record.events("bootstrapped")
    curve = loss_curve(record)
    if not made or len(curve.steps) <= 2 * FIRST:
        return []
    first = float(np.abs(curve.values[:FIRST]).max())
    size = np.abs(trailing_median(curve.values, 11))
    far = np.flatnonzero(
        (size > FAR * max(first, 1e-12)) & (curve.steps >= made[0].step) & (np.arange(len(size)) > FIRST)
    )
    if not len(far) or first == 0:
        return []
    i = int(far[0])
    doubled = int(np.argmax(size > 2 * first))
    now, peak = float(size[i]), float(size.max())
    return [
        CAUSE.finding(
            "error",
            confidence(peak / first, FAR),
            f"A copy of the model makes the targets, and they run away: the loss rose from {number(first)} to "
            f"{number(now)} by step {int(curve.steps[i])}. Update the copy more rarely or more slowly.",
            onset=int(curve.steps[doubled]),
            detected=int(curve.steps[i]),
            event=int(curve.steps[i]),
            evidence=[Evidence("loss", now, FAR * first, first, int(curve.steps[i]))],
        )
    ]


CAUSE = Cause(
    id="bootstrap_divergence",
    title="Bootstrapped targets run away",
    find=find,
    exact=False,
    doc=__doc__,
    family="reinforcement learning",
    leads_to=("stale_second_moment",),
    remedies=("lr_scale", "clip_grad_norm"),
)
