"""Batch normalisation has too few values for its statistics.

## What it is
A batch norm takes mean and variance of a channel from a handful of values: small batches, and no or few positions in
space.

## Why it hurts
Of two values, one becomes +1 and the other -1, whatever they were. Of a few more, the statistics are mostly noise,
different in every batch, and not those that evaluation uses: the loss falls slowly or not at all, and is worse in
evaluation.

## How it is detected
Exact: `bn_values[layer]`, the values per channel (batch size times positions) of a BatchNorm in training mode. It is a
warning where at least half of the batch norms had two or fewer in each of the first five samples, and an error once the
loss stalls or diverges. With 3 to 15 values it is *info*, and a warning once the loss stalls. A single short batch at
the end of an epoch is none of these.

## What cures it
Larger batches, or LayerNorm or GroupNorm, which do not depend on the batch.

```python
nn.BatchNorm1d(64)  # bad for batches of 2
nn.LayerNorm(64)  # good
nn.GroupNorm(8, 64)  # good for images
```

## References
- Wu and He, *Group normalization*, ECCV 2018, arXiv:1803.08494
- Ioffe, *Batch renormalization*, NIPS 2017, arXiv:1702.03275
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, listing, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

NOISY, MEANINGLESS, SAMPLES = 16, 2, 5


def find(record: Record) -> list[Finding]:
    """Find batch norms whose batches are too small, in every sample so far."""
    layers = {name: s for name, s in record.by_layer("bn_values").items() if len(s.steps) >= SAMPLES}
    detected = min((int(series.steps[SAMPLES - 1]) for series in layers.values()), default=0)
    layers = {name: series for name, series in layers.items() if series.steps[SAMPLES - 1] == detected}
    most = {name: float(np.max(series.values[:SAMPLES])) for name, series in layers.items()}
    few = sorted((name for name, values in most.items() if values < NOISY), key=lambda name: most[name])
    if not few:
        return []
    meaningless = [name for name in few if most[name] <= MEANINGLESS]
    grave = 2 * len(meaningless) >= len(layers)
    where = meaningless if grave else few
    onset = int(layers[where[0]].steps[0])
    stall = following([e for e in find_events(record) if e.kind != "spike"], onset)
    what = "each normalised value is +1 or -1, whatever it was" if grave else "mean and variance are mostly noise"
    return [
        CAUSE.finding(
            "warning" if grave else "info",
            EXACT if grave else 0.6,
            f"Batch norm {listing(where)} has {number(most[where[0]])} values per channel in a batch: {what}.",
            where=where,
            onset=onset,
            detected=detected,
            event=stall if 2 * len(few) >= len(layers) else None,
            severity_with_event="error" if grave else "warning",
            evidence=[Evidence(f"bn_values[{where[0]}]", most[where[0]], float(NOISY), None, detected)],
        )
    ]


CAUSE = Cause(
    id="small_batch_bn",
    title="Batch norm has too few values",
    find=find,
    exact=True,
    doc=__doc__,
    family="data",
    leads_to=("label_problem",),
)
