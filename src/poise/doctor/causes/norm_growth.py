"""The norm of scale-invariant weights grows.

## What it is
Weights that a normalisation follows matter by their direction only. Each step is orthogonal to them, so that they
never get shorter, and momentum, which still carries steps from before, makes them longer than the steps alone would.

## Why it hurts
The direction turns by the learning rate over the norm (squared, for SGD): as the norm grows, these layers learn more
and more slowly, whatever the schedule says. The network seems converged and is not; a rate that was tuned at the
beginning is not the rate at the end.

## How it is detected
A weight counts as scale-invariant where `radial_alignment`, `|cos(w, g)| sqrt(dim)`, is below 0.1 in three consecutive
samples; only such weights have an `effective_lr`. It counts where it has fallen to a quarter of what it was, with a
learning rate that has not (it still has more than half of its value then), in three consecutive samples, and the loss
is still above 20 % of its start. A fall that the schedule caused does not count.

## What cures it
Steps without their radial part (AdamP, SGDP); weight decay, which takes from the norm what steps give to it and keeps
the effective rate constant; a larger learning rate.

```python
torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)  # bad in front of BatchNorm: norms only grow
poise.optim.SGDP(model.parameters(), lr=0.5, momentum=0.9)  # good
torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=5e-4)  # good too
```

## References
- Heo et al., *AdamP: slowing down the slowdown for momentum optimizers on scale-invariant weights*, ICLR 2021,
  arXiv:2006.08217
- van Laarhoven, *L2 regularization versus batch and weight normalization*, 2017, arXiv:1706.05350
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    Mask,
    align,
    confidence,
    first_crossing,
    listing,
    number,
    own_baseline,
    samples_up_to,
    value_at,
)
from poise.doctor.events import loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

FALL = 4.0
HELD = 0.5
SAMPLES = 3
UNFINISHED = 0.2


def find(record: Record) -> list[Finding]:
    """Find scale-invariant weights that learn ever more slowly because they have grown."""
    layers = record.by_layer("effective_lr")
    hit = first_crossing(layers, lambda series: _slowed(record, series), SAMPLES)
    if hit is None:
        return []
    name = hit.where[0]
    series = layers[name]
    rate, early = value_at(series, hit.step), float(own_baseline(np.asarray(series.values))[-1])
    fall = early / rate if rate > 0 else np.inf
    onset = int(series.steps[samples_up_to(series, hit.step, SAMPLES)][0])
    return [
        CAUSE.finding(
            "warning",
            confidence(fall, FALL),
            f"Only the direction of {listing(hit.where)} matters, and it turns {number(fall)} times more slowly than "
            f"at first, because the norm has grown: the effective learning rate of {name} fell from {number(early)} to "
            f"{number(rate)}.",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            evidence=[Evidence(f"effective_lr[{name}]", rate, early / FALL, early, hit.step)],
        )
    ]


def _slowed(record: Record, series: Series) -> Mask:
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    curve = loss_curve(record)
    lr = align(record["lr"], series.steps)
    first = lr[np.isfinite(lr)][:1]
    if not len(curve.steps) or not len(first):
        return np.zeros(len(values), dtype=bool)
    level, start = (align(Series(curve.steps, part), series.steps) for part in (curve.level, curve.start))
    slow = values * FALL < own_baseline(values)
    # Against the highest rate so far: a warm-up raises it, a schedule that ends lowers it.
    held = lr > HELD * np.maximum.accumulate(np.where(np.isfinite(lr), lr, 0.0))
    return slow & held & (level > UNFINISHED * start)


CAUSE = Cause(
    id="norm_growth",
    title="The norm of scale-invariant weights grows",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("lr_too_small",),
    remedies=("tangential_updates", "weight_decay", "lr_scale=3"),
)
