"""The targets are not scaled.

## What it is
The targets of a regression are hundreds of times larger than what the model returns at first: prices in dollars, years,
counts.

## Why it hurts
An initialised model returns numbers of about unit scale, and each update changes them by a small fraction. It needs
thousands of steps to reach the mean of the targets, and until then it learns nothing about how they vary. With plain
gradient descent the first steps are as large as the targets, and throw the weights away.

## How it is detected
No classes are predicted, the root of the loss is more than 100 times the RMS of the model's first output (times the
root of the batch size, as the loss may be a sum), and after 100 steps the loss is still above
half of its start.

## What cures it
Standardise the targets with statistics of the training set, and undo it for predictions.

```python
loss = F.mse_loss(model(x), price)  # bad: 250,000 +- 80,000
loss = F.mse_loss(model(x), (price - mean) / std)  # good; predictions are model(x) * std + mean
```

## References
- LeCun, Bottou, Orr and Müller, *Efficient BackProp*, in Neural Networks: Tricks of the Trade, 1998
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number
from poise.doctor.events import find_events, following, loss_curve, loss_is_no_measure
from poise.report.finding import Evidence, Finding
from poise.store import Record

LARGE = 100.0
STEPS, UNFINISHED, BLOWN_UP = 100, 0.5, 10.0


def find(record: Record) -> list[Finding]:
    """Find a loss that is far larger than the square of what the model returns, and stays there."""
    output, curve = _first_output(record), loss_curve(record)
    if output is None or len(record["classes"].steps) or len(curve.steps) < STEPS:
        return []
    size, step = output
    batch = record["batch_size"].values
    limit = LARGE * float(np.sqrt(max(float(batch[0]), 1.0))) if len(batch) else LARGE
    here = np.arange(len(curve.steps))
    # The smallest of the first three: of a run that blows up, the first tells the scale of the targets.
    start = float(curve.values[:3].min())
    ratio = float(np.sqrt(max(start, 0.0))) / max(size, 1e-12)
    rests = (curve.level > UNFINISHED * start) & (curve.level < BLOWN_UP * start)
    still = (here >= STEPS) & rests & (curve.steps < loss_is_no_measure(record))
    if ratio <= limit or not still.any():
        return []
    i = int(np.argmax(still))
    detected, level = int(curve.steps[i]), float(curve.level[i])
    return [
        CAUSE.finding(
            "error",
            confidence(ratio, limit),
            f"The targets are not scaled: the model's first outputs are of size {number(size)}, the root of the loss "
            f"is {number(start**0.5)}, and after {detected} steps the loss is still {number(level)}.",
            onset=int(curve.steps[0]),
            detected=max(detected, step),
            event=following(find_events(record), int(curve.steps[0])),
            evidence=[
                Evidence("sqrt(loss) / output_rms", ratio, limit, None, step),
                Evidence("loss", level, UNFINISHED * start, start, detected),
            ],
        )
    ]


def _first_output(record: Record) -> tuple[float, int] | None:
    """Return the RMS of what the model returned first, and the step; ``None`` if it is not known or 0."""
    for event in record.events("model"):
        series = record[f"act_rms[{event.payload.get('class', '')}]"]
        if len(series.steps) and np.isfinite(series.values[0]) and series.values[0] > 0:
            return float(series.values[0]), int(series.steps[0])
    return None


CAUSE = Cause(
    id="unscaled_targets",
    title="The targets are not scaled",
    find=find,
    exact=False,
    doc=__doc__,
    family="data",
    leads_to=("stale_second_moment",),
)
