"""The learning rate is too small.

## What it is
The learning rate is so small that weights do not move.

## Why it hurts
Nothing breaks, and nothing is learned: the run wastes its time, and its flat loss is mistaken for a plateau or for
bad data.

## How it is detected
After at least 60 steps the relative update `||Δθ|| / ||θ||` is below 5e-5 (median of the last five samples) and the
loss is within 3 % of where it started, while gradients are not zero (norm above 1e-5) and the learning rate is neither
being warmed up nor has been decayed below half of its peak.

## What cures it
A learning rate ten to a hundred times higher.

```python
torch.optim.Adam(model.parameters(), lr=1e-7)  # bad
torch.optim.Adam(model.parameters(), lr=1e-3)  # good
```

## References
- Smith, *Cyclical learning rates for training neural networks*, WACV 2017, arXiv:1506.01186
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number, typical, update_ratio, value_at
from poise.doctor.events import loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

SMALL_UPDATE, NO_PROGRESS, NO_GRADIENT = 5e-5, 0.03, 1e-5
HEALTHY_UPDATE = 1e-3
STEPS = 60


def find(record: Record) -> list[Finding]:
    """Find weights that do not move although gradients are not zero."""
    updates, gradients = update_ratio(record), record["grad_norm"]
    curve = loss_curve(record)
    if len(curve.steps) <= STEPS:
        return []
    first = int(curve.steps[0])
    early = float(curve.level[10])
    for step in updates.steps[updates.steps >= first + STEPS]:
        u = typical(updates, int(step))
        level = float(curve.level[np.searchsorted(curve.steps, step, side="right") - 1])
        moved = abs(level - early) > NO_PROGRESS * abs(early)
        if (
            moved
            or not u < SMALL_UPDATE
            or typical(gradients, int(step)) <= NO_GRADIENT
            or not _steady(record["lr"], int(step))
        ):
            continue
        lr = value_at(record["lr"], int(step))
        at_rate = f" at learning rate {number(lr)}" if math.isfinite(lr) else ""
        return [
            CAUSE.finding(
                "warning",
                confidence(SMALL_UPDATE, max(u, 1e-12)),
                f"Each update changed the weights by a relative {number(u)}{at_rate} (healthy: about 0.001), and after "
                f"{int(step) - first} steps the loss is still {number(level)} ({number(early)} at the start).",
                onset=first,
                detected=int(step),
                event=first,
                remedies=(f"lr_scale={_factor(u)}",),
                evidence=[
                    Evidence("update_ratio", u, SMALL_UPDATE, None, int(step)),
                    Evidence("loss", level, None, early, int(step)),
                ],
            )
        ]
    return []


def _factor(u: float) -> int:
    """Return how many times larger the rate may be, with one digit: at least 10 times, at most 10 000 times."""
    return int(float(f"{min(max(HEALTHY_UPDATE / max(u, 1e-12), 10.0), 1e4):.1g}"))


def _steady(lr: Series, step: int) -> bool:
    values = lr.values[lr.steps <= step]
    if not len(values):
        return True
    back = values[-11] if len(values) > 10 else values[0]
    return bool(values[-1] <= 1.001 * back and values[-1] >= 0.5 * values.max())


CAUSE = Cause(
    id="lr_too_small",
    title="The learning rate is too small",
    find=find,
    exact=False,
    doc=__doc__,
    family="learning rate",
    remedies=("lr_scale=10",),
)
