"""The second moment cannot fall in half precision.

## What it is
Weights and, with them, the state of Adam are kept in bfloat16, and beta2 is 0.998 or more. Multiplied by such a beta2,
the second moment `v` changes by less than half the distance to the next number, and is rounded back to what it was.

## Why it hurts
`v` keeps the size of the largest gradients ever seen. When gradients become smaller, the steps become smaller with
them, though Adam is meant to keep their size: the learning rate decays unseen, by as much as the gradients have.

## How it is detected
Exact arithmetic: `second_moment_stuck`, the fraction of coordinates with `beta2 * v == v` in the precision of the
state, is above 0.9. And it has an effect: after twice the `1 / (1 - beta2)` steps that Adam looks back, the gradient is
below 0.3 of `sqrt(v)` (`adam_rms`; about 1 in a healthy run) in five samples in a row, for the median of the weight
matrices.

## What cures it
```python
model = model.bfloat16()  # bad with Adam and beta2 = 0.999
with torch.autocast("cuda", dtype=torch.bfloat16):  # good: weights and state stay in float32
    loss = model(x)
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))  # good enough
```

## References
- Zamirai et al., *Revisiting BFloat16 training*, 2020, arXiv:2010.06192
- Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, arXiv:1412.6980
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, first_run, layer_table, number, value_at
from poise.report.finding import Evidence, Finding
from poise.store import Record

STUCK, SMALL, SAMPLES = 0.9, 0.3, 5


def find(record: Record) -> list[Finding]:
    """Find a second moment that only rises, and gradients that have become small beside it."""
    stuck, beta2 = record["second_moment_stuck"], _beta2(record)
    held = np.flatnonzero(np.asarray(stuck.values) > STUCK)
    if not len(held) or not 0 < beta2 < 1:
        return []
    steps, table = layer_table(record.by_layer("adam_rms"))
    finite = np.where(np.isfinite(table), table, np.nan)
    known = np.isfinite(finite).any(axis=1) & (steps >= max(int(stuck.steps[held[0]]), 2 / (1 - beta2)))
    steps, finite = steps[known], finite[known]
    size = np.nanmedian(finite, axis=1) if len(steps) else np.zeros(0)
    end = first_run(size < SMALL, SAMPLES)
    if end is None or not value_at(stuck, int(steps[end])) > STUCK:
        return []
    step, share = int(steps[end]), value_at(stuck, int(steps[end]))
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            f"{number(100 * share)} % of the second moment cannot fall: in half precision {beta2:g} times v is rounded "
            f"back to v. Gradients are {number(float(size[end]))} of its root, and so much smaller is each step.",
            onset=int(steps[end - SAMPLES + 1]),
            detected=step,
            evidence=[
                Evidence("second_moment_stuck", share, STUCK, 0.0, step),
                Evidence("adam_rms", float(size[end]), SMALL, 1.0, step),
            ],
        )
    ]


def _beta2(record: Record) -> float:
    for event in record.events("optimizer"):
        for group in event.payload.get("groups", []):
            betas = group.get("betas")
            if isinstance(betas, list | tuple) and len(betas) == 2 and isinstance(betas[1], float):
                return betas[1]
    return 0.0


CAUSE = Cause(
    id="lowprec_state",
    title="The second moment cannot fall in half precision",
    find=find,
    exact=True,
    doc=__doc__,
    family="number formats",
    leads_to=("lr_too_small",),
    remedies=("beta2=0.95",),
)
