"""Gradients are never reset.

## What it is
Gradients are never reset: every `backward()` adds to the gradients of all steps before.

## Why it hurts
The optimizer follows the sum of all gradients since the start: momentum 1, with no forgetting. The gradient norm
grows with the number of steps; the loss oscillates with growing amplitude or diverges.

## How it is detected
A fact: when `backward()` began, gradients still held the values with which the previous step was taken, in three
consecutive samples. Gradient accumulation between two steps is something else and not reported.

## What cures it
```python
loss.backward()
optimizer.step()  # bad
optimizer.zero_grad()
loss.backward()
optimizer.step()  # good
```

## References
- PyTorch recipes, *Zeroing out gradients in PyTorch*
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, first_run, number, own_baseline
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find gradients that carry over from step to step."""
    stale = record["stale_gradient"]
    index = first_run(np.asarray(stale.values) > 0.5, 3)
    if index is None:
        return []
    onset, detected = int(stale.steps[index - 2]), int(stale.steps[index])
    event = following(find_events(record), onset)
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"Gradients were not reset since step {onset}: every step follows the sum of all gradients so far"
            + f"{_growth(record)}.",
            onset=onset,
            detected=detected,
            event=event,
            evidence=[Evidence("stale_gradient", 1.0, None, 0.0, detected)],
        )
    ]


def _growth(record: Record) -> str:
    norms = np.asarray(record["grad_norm"].values)
    norms = norms[np.isfinite(norms)]
    if len(norms) < 2 or norms.max() < 2 * own_baseline(norms, 3)[-1]:
        return ""
    return f"; their norm grew from {number(float(norms[0]))} to {number(float(norms.max()))}"


CAUSE = Cause(
    id="missing_zero_grad",
    title="Gradients are never reset",
    find=find,
    exact=True,
    doc=__doc__,
    family="script",
    leads_to=("attention_logit_growth",),
)
