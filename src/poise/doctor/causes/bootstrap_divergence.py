"""Bootstrapped targets run away.

## What it is
The targets are made by a copy of the model (temporal differences), and model and targets chase each other upwards: each
update raises the predictions, and with them the next targets.

## Why it hurts
Values grow without bound, far above what any sequence of rewards is worth. The policy that follows them is arbitrary.

## How it is detected
A copy of the model makes the targets (event `bootstrapped`), or the model makes its data by acting (event
`environment`) and has no policy gradient, and the median of the last 11 losses is above a thousand times the largest of
the first five; or above a hundred times it, and it has tripled in the last third of the run so far and in the third
before. In health the loss grows too, as values grow from 0 to what they are worth, but with the square of a part of
them, and ever more slowly. A loss that runs away below zero has the wrong sign.

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

FAR, GROWING = 1e3, 1e2
TRIPLED = 3.0
FIRST = 5


def find(record: Record) -> list[Finding]:
    """Find a loss that runs away while a copy of the model makes its targets."""
    made = record.events("bootstrapped")
    if not made:
        made = record.events("environment")
    curve = loss_curve(record)
    if not made or len(curve.steps) <= 2 * FIRST:
        return []
    first = float(np.abs(curve.values[:FIRST]).max())
    size = np.abs(trailing_median(curve.values, 11))
    here = np.arange(len(size))
    convex = (size > TRIPLED * size[2 * here // 3]) & (size[2 * here // 3] > TRIPLED * size[here // 3])
    large = (size > FAR * first) | ((size > GROWING * first) & convex & (here > 30))
    far = np.flatnonzero(large & (curve.steps >= made[0].step) & (here > FIRST))
    if not len(far) or first == 0:
        return []
    i = int(far[0])
    policies = record.events("policy_gradient")
    if not record.events("bootstrapped") and policies and policies[0].step <= curve.steps[i]:
        return []  # its loss has any size
    doubled = int(np.argmax(size > 2 * first))
    now, peak = float(size[i]), float(size.max())
    return [
        CAUSE.finding(
            "error",
            confidence(peak / first, GROWING),
            f"{_told(record)}, and they run away: the loss went from {number(first)} to "
            f"{number(float(curve.level[i]))} by step {int(curve.steps[i])}. {_advice(record, float(curve.level[i]))}",
            onset=int(curve.steps[doubled]),
            detected=int(curve.steps[i]),
            event=int(curve.steps[i]),
            evidence=[Evidence("loss", now, GROWING * first, first, int(curve.steps[i]))],
        )
    ]


def _told(record: Record) -> str:
    return f"{'A copy of the model' if record.events('bootstrapped') else 'The model itself'} makes the targets"


def _advice(record: Record, level: float) -> str:
    if level < 0:
        return "An error that falls below zero has the wrong sign."
    if record.events("bootstrapped"):
        return "Update the copy more rarely or more slowly."
    return "Make the targets with a copy of the model that is updated rarely."


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
