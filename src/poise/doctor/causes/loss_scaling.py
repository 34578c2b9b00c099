"""The loss falls by scaling: the weights grow along themselves.

## What it is
Once a classifier has the right answer for every sample, its cross-entropy still falls when all logits are multiplied
by a number above 1. The gradient of the last layer then points along its weights (naive loss minimisation).

## Why it hurts
Predictions do not change any more, the loss does. Logits grow until the softmax is absorbed by rounding
(`softmax_collapse`), confidences mean nothing, and features that would generalise are no longer learned.

## How it is detected
`loss_scaling_alignment`, the cosine of the last weight matrix and the negative gradient, is above 0.5 in five
consecutive samples, while the cross-entropy is below 1 % of where it began: by then hardly a sample can be wrong. It is
*info*: whether something was left to learn, other data than those of training would have to show.

## What cures it
Remove that direction from the gradients (OrthoGrad), use weight decay against it, or train on StableMax, whose loss
gains far less by scaling. If the goal was only to fit the data: stop.

```python
torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)  # bad for long runs on data that can be fitted
poise.optim.OrthoGrad(torch.optim.AdamW(model.parameters(), lr=1e-2))  # good
```

## References
- Prieto et al., *Grokking at the edge of numerical stability*, ICLR 2025, arXiv:2501.04697
- Soudry et al., *The implicit bias of gradient descent on separable data*, JMLR 2018, arXiv:1710.10345
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import Mask, align, confidence, first_crossing, number, samples_up_to
from poise.doctor.events import loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

ALIGNED = 0.5
SAMPLES = 5
LOW = 0.01


def find(record: Record) -> list[Finding]:
    """Find a fitted classifier whose last layer is only being scaled up."""
    layers = record.by_layer("loss_scaling_alignment")
    hit = first_crossing(layers, lambda series: _scaling(record, series), SAMPLES)
    if hit is None:
        return []
    name = hit.where[0]
    series = layers[name]
    run = samples_up_to(series, hit.step, SAMPLES)
    cosine, onset = float(np.median(series.values[run])), int(series.steps[run][0])
    return [
        CAUSE.finding(
            "info",
            confidence(cosine, ALIGNED),
            f"Since step {onset} the data are fitted (loss below 1 % of its start) and what still lowers it "
            f"is scaling {name} up (cosine of weight and step {number(cosine)}).",
            where=hit.where,
            onset=onset,
            detected=hit.step,
            evidence=[Evidence(f"loss_scaling_alignment[{name}]", cosine, ALIGNED, None, hit.step)],
        )
    ]


def _scaling(record: Record, series: Series) -> Mask:
    curve = loss_curve(record)
    if not len(curve.steps):
        return np.zeros(len(series.steps), dtype=bool)
    parts = (curve.level, curve.start, curve.best)
    classifies = np.isfinite(align(record["classes"], series.steps))  # a regression's weights grow to its solution
    level, start, best = (align(Series(curve.steps, part), series.steps) for part in parts)
    # A loss that is negative somewhere has no floor at zero: small does not mean fitted.
    return (series.values > ALIGNED) & (level < LOW * start) & (best >= 0) & classifies


CAUSE = Cause(
    id="loss_scaling",
    title="The loss falls by scaling",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    remedies=("ortho_grad", "weight_decay", "stablemax"),
)
