"""Clipping takes nearly all of every gradient.

## What it is
`clip_grad_norm_` has a limit so far below the gradients that it acts in every step, and leaves a small part of them.

## Why it hurts
Without division by the size of gradients (SGD, with momentum or not) each step has the length `lr * limit`, whatever
the loss says: the learning rate is as many times too small as the gradients are larger than the limit. Adam and its
kin divide by that size and do not mind.

## How it is detected
The optimizer does not divide by the size of gradients. In 95 % of at least 100 steps with clipping the gradient was
larger than the limit, by a factor of ten or more in the median, and the loss is within 3 % of where it started. (That
clipping acts in every step is no fault where the loss falls.)

## What cures it
```python
nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # bad for gradients of norm 1
nn.utils.clip_grad_norm_(model.parameters(), 2.0)  # good: near the largest usual norm
```

## References
- Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, arXiv:1211.5063
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import align, confidence, number
from poise.doctor.events import loss_curve, loss_is_no_measure
from poise.report.finding import Evidence, Finding
from poise.store import Record

STEPS, CLIPPED, RATIO, NO_PROGRESS = 100, 0.95, 10.0, 0.03


def find(record: Record) -> list[Finding]:
    """Find a limit of clipping that keeps SGD from moving."""
    limits, norms, curve = record["clip_max"], record["grad_norm"], loss_curve(record)
    if not _keeps_size(record) or len(limits.steps) < STEPS or len(curve.steps) < STEPS:
        return []
    shared = np.isin(norms.steps, limits.steps) & np.isfinite(norms.values)
    steps, ratio = norms.steps[shared], norms.values[shared] / np.maximum(align(limits, norms.steps[shared]), 1e-30)
    first = int(curve.steps[0])
    for step in curve.steps[STEPS - 1 :: STEPS // 4]:
        seen = ratio[steps <= step]
        level = float(curve.level[np.searchsorted(curve.steps, step, side="right") - 1])
        early = float(curve.level[10])
        moved = abs(level - early) > NO_PROGRESS * abs(early)
        clipped = np.count_nonzero(limits.steps <= step) >= STEPS and len(seen) >= STEPS // 4
        if moved or not clipped or np.mean(seen > 1) <= CLIPPED or np.median(seen) < RATIO:
            continue
        if step >= loss_is_no_measure(record):
            return []
        times, limit = float(np.median(seen)), float(align(limits, np.array([step]))[0])
        return [
            CAUSE.finding(
                "warning",
                confidence(times, RATIO),
                f"Gradients are clipped in {number(100 * float(np.mean(seen > 1)))} % of the steps, to a "
                f"{number(times)}th of their size in the median (limit {number(limit)}), and after "
                f"{int(step) - first} steps the loss is still {number(level)} ({number(early)} at the start).",
                onset=first,
                detected=int(step),
                event=first,
                evidence=[
                    Evidence("grad_norm", times * limit, limit, None, int(step)),
                    Evidence("loss", level, None, early, int(step)),
                ],
            )
        ]
    return []


def _keeps_size(record: Record) -> bool:
    """Return whether it is known that the optimizer does not divide gradients by their size."""
    known = [event.payload.get("adaptive") for event in record.events("first_step")]
    return bool(known) and not any(adaptive is not False for adaptive in known)


CAUSE = Cause(
    id="clip_saturated",
    title="Clipping takes nearly all of every gradient",
    find=find,
    exact=False,
    doc=__doc__,
    family="gradients",
    leads_to=("lr_too_small",),
    remedies=("lr_scale=10",),
)
