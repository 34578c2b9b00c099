"""Adam's eps outweighs the gradients.

## What it is
Gradients are so small that the `eps` in Adam's denominator, meant as a guard against division by zero, outweighs the
second moment. Adam then is no longer scale-free: its updates shrink with the gradients.

## Why it hurts
Layers with small gradients (early layers of large models, embeddings) stop learning, while others go on; at scale
whole layers collapse. With the default `1e-8` this happens when the RMS of a gradient is near `1e-8`; with
`eps=1e-3`, common in copied recipes, nearly always.

## How it is detected
`adam_eps_shrink[p]`, the mean of `sqrt(v) / (sqrt(v) + eps)` over coordinates with a gradient, is 1 in a healthy
tensor. Below 0.5 in three consecutive samples of a weight matrix after the first ten steps, while the loss is above 5 %
of its start (a converged run has small gradients), `eps` dominates. Biases are left out: some (of keys, or
before a batch norm) have gradients that are zero but for rounding. For weights in half precision it is *info*,
and no remedy is named: there `eps` has to be large (see `eps_underflow`).

## What cures it
A smaller `eps` (`1e-12` to `1e-15` in float32).

```python
torch.optim.AdamW(parameters, lr=1e-3, eps=1e-3)  # bad
torch.optim.AdamW(parameters, lr=1e-3, eps=1e-12)  # good
```

## References
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
- Everett et al., *Scaling exponents across parameterizations and optimizers*, ICML 2024, arXiv:2407.05872
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    Mask,
    align,
    confidence,
    first_crossing,
    listing,
    matrices,
    number,
    optimizer_class,
    parameter_types,
    value_at,
)
from poise.doctor.events import find_events, following, loss_curve, loss_is_no_measure
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

THRESHOLD = 0.5
UNFINISHED = 0.05
SEASONED = 10


def find(record: Record) -> list[Finding]:
    """Find weight matrices whose Adam updates are mostly divided by eps."""
    layers = matrices(record.by_layer("adam_eps_shrink"), record)
    curve = loss_curve(record)

    def dominated(series: Series) -> Mask:
        # Before, a second moment without bias correction (RMSprop) is too small by itself.
        small = (np.asarray(series.values) < THRESHOLD) & (series.steps >= SEASONED)
        if not len(curve.steps):
            return small
        level = align(Series(curve.steps, curve.level), series.steps)
        start = align(Series(curve.steps, curve.start), series.steps)
        return small & ~(np.abs(level) <= UNFINISHED * np.abs(start))

    hit = first_crossing(layers, dominated, length=3)
    if hit is None:
        return []
    where = tuple(sorted(hit.where, key=lambda name: value_at(layers[name], hit.step)))
    shrink = value_at(layers[where[0]], hit.step)
    series = layers[where[0]]
    small = series.steps[(series.steps <= hit.step)][-3:]
    event = following(find_events(record), int(small[0]))
    # A smaller eps is 0 there: with gradients that are 0, too, the update is not a number.
    in_half = any(parameter_types(record).get(name, "").removeprefix("torch.") == "float16" for name in where)
    # A policy begins with small gradients (a small last layer), and its loss does not show whether that does harm.
    acts = event is None and math.isfinite(loss_is_no_measure(record))
    return [
        CAUSE.finding(
            "info" if in_half or acts else "warning",
            confidence(THRESHOLD, max(shrink, 1e-6)),
            f"The eps of {optimizer_class(record)} outweighs the gradients of {listing(where)}: its updates there are "
            f"{number(shrink)} of their intended size.",
            where=where,
            remedies=() if in_half else None,
            onset=int(small[0]),
            detected=hit.step,
            event=event,
            evidence=[Evidence(f"adam_eps_shrink[{where[0]}]", shrink, THRESHOLD, 1.0, hit.step)],
        )
    ]


CAUSE = Cause(
    id="eps_dominates",
    title="Adam's eps outweighs the gradients",
    find=find,
    exact=False,
    doc=__doc__,
    family="optimizer",
    leads_to=("lr_too_small",),
    remedies=("adam_eps", "lr_scale"),
)
