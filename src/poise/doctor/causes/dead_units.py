"""Units are dead.

## What it is
Many units of a ReLU layer are zero for every input. Their gradient is zero too, so they never come back.

## Why it hurts
The layer has lost that part of its capacity; if all units are dead, nothing below it learns any more and the output
is a constant.

## How it is detected
`dead_units[layer]`, the fraction of units that were zero for each of the last 100 inputs seen, exceeds 0.5 in three
consecutive samples. Some units are zero for most inputs in a healthy network, so up to 0.9 this is *info*, unless
the loss stalled or diverged while more than 0.75 were dead; above 0.9 it is a warning, and from 0.98 on an error.

## What cures it
A lower learning rate or a warm-up (most units die in a few steps that are too large), biases that start at 0, scaled
inputs, or an activation that is not flat (leaky ReLU, GELU).

```python
nn.init.constant_(layer.bias, -5.0)  # bad: below zero for all inputs of unit scale
nn.init.zeros_(layer.bias)  # good
```

## References
- Lu, Shin, Su and Karniadakis, *Dying ReLU and initialization: theory and numerical examples*, 2019, arXiv:1903.06733
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    confidence,
    extreme_after,
    first_crossing,
    listing,
    number,
    typical,
    update_ratio,
    value_at,
)
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding, Severity
from poise.store import Record

THRESHOLD, HARMFUL, MANY, ALL = 0.5, 0.75, 0.9, 0.98
BORN, LARGE_UPDATE = 2, 0.02


def find(record: Record) -> list[Finding]:
    """Find layers most of whose units are zero for every input."""
    layers = record.by_layer("dead_units")
    hit = first_crossing(layers, lambda series: np.asarray(series.values) > THRESHOLD, length=3)
    if hit is None:
        return []
    layer, (fraction, at) = max(
        ((name, extreme_after(layers[name], hit.step)) for name in hit.where), key=lambda pair: pair[1][0]
    )
    now = value_at(layers[layer], hit.step)
    more = f", {number(100 * fraction)} % at step {at}" if fraction > 1.01 * now else ""
    steps = layers[hit.where[0]].steps
    onset = int(steps[steps <= hit.step][-3:][0])
    # Units that are active again when the loss stalls are not its cause.
    events = [
        e
        for e in find_events(record)
        if e.kind != "spike" and any(value_at(layers[name], e.detected_step) > THRESHOLD for name in hit.where)
    ]
    event = following(events, onset)
    # Units that were dead from the first steps on, under small updates, were born dead: a smaller rate leaves them so.
    killed = onset > BORN or typical(update_ratio(record), onset) >= LARGE_UPDATE
    severity: Severity = "error" if fraction >= ALL else "warning" if fraction > MANY else "info"
    return [
        CAUSE.finding(
            severity,
            # In doublings of the active fraction: 50 % active is the threshold, 5 % active is 10 times beyond it.
            confidence(1 - THRESHOLD, max(1 - fraction, 1e-3)),
            f"{number(100 * now)} % of the units of {_layers(hit.where)} are zero for every input since step "
            f"{onset}{more}.",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            event=event,
            remedies=None if killed else (),
            severity_with_event="error" if fraction >= ALL else "warning" if fraction > HARMFUL else "info",
            evidence=[Evidence(f"dead_units[{layer}]", value_at(layers[layer], hit.step), THRESHOLD, None, hit.step)],
        )
    ]


def _layers(names: tuple[str, ...]) -> str:
    """Return the names of layers; a mere number, as ``nn.Sequential`` gives it, is called a layer."""
    return listing([f"layer {name}" if name.isdigit() else name for name in names])


CAUSE = Cause(
    id="dead_units",
    title="Units are dead",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("representation_collapse", "vanishing_gradients"),
    remedies=("lr_scale", "warmup", "clip_grad_norm"),
)
