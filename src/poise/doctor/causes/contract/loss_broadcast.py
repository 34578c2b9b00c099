"""Prediction and target have different shapes, and the loss compares all pairs.

## What it is
A regression loss is given `[N, 1]` predictions and `[N]` targets (or the reverse). Broadcasting makes an `[N, N]`
table: every prediction is compared with every target.

## Why it hurts
The best answer to all targets at once is their mean. The loss stops at the variance of the targets, and the model
predicts a constant.

## How it is detected
A fact: two shapes of equally many numbers broadcast to more numbers, in a loss function of torch or in a difference
whose square or absolute value is averaged.

## What cures it
```python
loss = F.mse_loss(model(x), y)  # bad: [64, 1] against [64]
loss = F.mse_loss(model(x).squeeze(1), y)  # good
loss = F.mse_loss(model(x), y.unsqueeze(1))  # good
```

## References
- PyTorch documentation, *Broadcasting semantics*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a regression loss over all pairs of predictions and targets."""
    event = first_event(record, "loss_broadcast")
    if event is None:
        return []
    prediction, target = (list(event.payload[name]) for name in ("prediction", "target"))
    cure = "prediction.squeeze(-1)" if len(prediction) > len(target) else "target.squeeze(-1)"
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The loss{at_line(event)} compares predictions of shape {prediction} with targets of shape {target}: each "
            f"prediction with all targets, so that the model learns their mean. Give it {cure}.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("prediction_dimensions", len(prediction), None, len(target), event.step)],
        )
    ]


CAUSE = Cause(
    id="loss_broadcast",
    title="Prediction and target have different shapes",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
