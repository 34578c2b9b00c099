"""Updates are lost to rounding.

## What it is
Weights are stored in bfloat16 or float16, and updates are smaller than half the distance to the next representable
number: adding them changes nothing.

## Why it hurts
bfloat16 has 8 bits of precision: any update below about 0.2 to 0.4 % of a weight is lost, whatever the optimizer
computed. With healthy learning rates that is most of them. Training slows down, then stops well above the loss that
float32 reaches.

## How it is detected
Exact arithmetic: `update_lost[p]`, the fraction of coordinates with a gradient whose value did not change in the step,
exceeds 0.3 in three consecutive samples of a weight matrix, while the learning rate is at least a tenth of its peak (at
the end of a decay updates vanish by design). It is an error where more than 70 % are lost.

## What cures it
Keep a float32 copy of the weights (autocast does), round stochastically, or sum with compensation.

```python
model.bfloat16()  # bad for training
with torch.autocast("cpu", dtype=torch.bfloat16):
    ...  # good: weights stay float32
```

## References
- Zamirai et al., *Revisiting BFloat16 training*, 2020, arXiv:2010.06192
- Gupta et al., *Deep learning with limited numerical precision*, ICML 2015, arXiv:1502.02551
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    EXACT,
    Mask,
    align,
    first_crossing,
    listing,
    matrices,
    number,
    parameter_types,
    value_at,
)
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

THRESHOLD, MOST = 0.3, 0.7


def find(record: Record) -> list[Finding]:
    """Find low-precision weights that most updates cannot change."""
    layers = matrices(record.by_layer("update_lost"), record)
    lr = record["lr"]
    peak = Series(lr.steps, np.maximum.accumulate(lr.values)) if len(lr.steps) else lr

    def lost(series: Series) -> Mask:
        decayed = align(lr, series.steps) < 0.1 * align(peak, series.steps)
        return (np.asarray(series.values) > THRESHOLD) & ~decayed

    hit = first_crossing(layers, lost, length=3)
    if hit is None:
        return []
    worst = hit.where[0]
    fraction = value_at(layers[worst], hit.step)
    steps = layers[worst].steps
    onset = int(steps[steps <= hit.step][-3:][0])
    event = following(find_events(record), onset)
    dtype = parameter_types(record).get(worst, "low precision").removeprefix("torch.")
    return [
        CAUSE.finding(
            "error" if fraction > MOST else "warning",
            EXACT,
            f"{number(100 * fraction)} % of the updates of {listing(hit.where)} are lost to rounding: the weights are "
            f"{dtype}, and most updates are smaller than the distance to the next number.",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            event=event,
            evidence=[Evidence(f"update_lost[{worst}]", fraction, THRESHOLD, None, hit.step)],
        )
    ]


CAUSE = Cause(
    id="bf16_update_lost",
    title="Updates are lost to rounding",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("lr_too_small",),
    remedies=("lr_scale=10",),
)
