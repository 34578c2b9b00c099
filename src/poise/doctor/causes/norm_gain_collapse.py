"""The gains of normalisation layers go to zero.

## What it is
The learned gain of a LayerNorm, BatchNorm, GroupNorm or RMSNorm shrinks towards zero: weight decay or a penalty acts on
it, or the updates were so large that it was thrown there.

## Why it hurts
What follows the norm gets next to nothing of its input, and the gradient on its way back is multiplied by the same
small gain. The output no longer depends on the input.

## How it is detected
The norm of the gain, `param_norm[layer.weight]`, is below a twentieth of its first value in three consecutive samples,
in at least half of the normalisation layers, and the loss stalls or diverges. Without that it is *info*: penalties that
remove channels do it on purpose. Gains that begin at zero are left out.

## What cures it
No weight decay on gains and biases (all parameters of one dimension), a lower learning rate.

```python
AdamW(model.parameters(), weight_decay=10.0)  # bad: decays gains as well
decay = [p for p in model.parameters() if p.dim() > 1]
rest = [p for p in model.parameters() if p.dim() <= 1]
AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])  # good
```

## References
- Summers and Dinneen, *Four things everyone should know to improve batch normalization*, ICLR 2020, arXiv:1906.03548
- Liu et al., *Learning efficient convolutional networks through network slimming*, ICCV 2017, arXiv:1708.06519
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, first_run, layer_table, listing, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

FRACTION, SAMPLES = 0.05, 3


def find(record: Record) -> list[Finding]:
    """Find gains that have shrunk to a small fraction of what they were."""
    gains = {n: s for n, s in _gains(record).items() if len(s.steps) and s.values[0] > 0}
    steps, table = layer_table(gains)
    if not len(steps):
        return []
    ratio = table / np.array([float(series.values[0]) for series in gains.values()])
    gone = ratio < FRACTION
    known = np.maximum.accumulate(np.isfinite(ratio)).sum(axis=1)  # layers seen so far
    index = first_run((gone.sum(axis=1) > 0) & (2 * gone.sum(axis=1) >= known), SAMPLES)
    if index is None:
        return []
    names = list(gains)
    where = [names[j] for j in np.argsort(ratio[index]) if gone[index, j]]
    onset, detected, left = int(steps[index - SAMPLES + 1]), int(steps[index]), float(np.nanmin(ratio[index]))
    # The gains shrink before they have shrunk: a loss that has been at rest since then counts.
    events = [e for e in find_events(record) if e.kind != "spike" and e.detected_step >= onset]
    return [
        CAUSE.finding(
            "info",
            confidence(FRACTION, max(left, 1e-6)),
            f"The gains of {listing(where)} have shrunk to {number(100 * left)} % of what they were at first.",
            where=where,
            onset=onset,
            detected=detected,
            event=following(events, 0),
            severity_with_event="error",
            evidence=[Evidence(f"param_norm[{where[0]}] / first", left, FRACTION, 1.0, detected)],
        )
    ]


def _gains(record: Record) -> dict:
    kinds = {name: str(kind) for e in record.events("model") for name, kind in e.payload.get("modules", {}).items()}
    norms = {f"{name}.weight" for name, kind in kinds.items() if kind.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))}
    return {name: series for name, series in record.by_layer("param_norm").items() if name in norms}


CAUSE = Cause(
    id="norm_gain_collapse",
    title="The gains of normalisation layers go to zero",
    find=find,
    exact=False,
    doc=__doc__,
    family="optimizer",
    leads_to=("label_problem",),
    remedies=("weight_decay=0", "lr_scale"),
)
