"""The inputs are not scaled.

## What it is
The inputs of the model are far from mean 0 and scale 1: raw pixel values up to 255, incomes in dollars, or features
divided by 255 twice.

## Why it hurts
The curvature of the loss grows with the square of the inputs, so a learning rate that suits scaled inputs is far too
high; units saturate or die in the first steps. Inputs that are too small make the gradient of the first layer vanish.

## How it is detected
`input_mean` beyond ±10, `input_std` above 10 or below 0.01 in three consecutive samples. By itself that is *info*: a
batch norm behind the input, or a small learning rate, may be enough. It is a warning if the loss spikes or stalls early
(within 60 steps), if more than half of a layer's units die, or if the first loss is three times that of a uniform
guess; an error if the loss diverges early.

## What cures it
Standardise the inputs, with statistics of the training set.

```python
x = images.float()  # bad: 0 to 255
x = (images.float() / 255 - 0.5) / 0.25  # good
```

## References
- LeCun, Bottou, Orr and Müller, *Efficient BackProp*, in Neural Networks: Tricks of the Trade, 1998
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, first_run, number, value_at
from poise.doctor.events import LossEvent, find_events
from poise.report.finding import Evidence, Finding, Severity
from poise.store import Record

FAR, SMALL = 10.0, 1e-2
EARLY = 60


def find(record: Record) -> list[Finding]:
    """Find inputs far from unit scale, and whether they did harm."""
    mean, std = record["input_mean"], record["input_std"]
    far = [i for s in (mean, std) if (i := first_run(np.abs(s.values) > FAR, 3)) is not None]
    small = first_run((np.asarray(std.values) < SMALL) & (np.asarray(std.values) > 0), 3)
    if not far and small is None:
        return []
    index = min([*far, *([small] if small is not None else [])])
    source = std if len(std.steps) else mean
    detected = int(source.steps[index])
    m, s = value_at(mean, detected), value_at(std, detected)
    severity, harm, event = _harm(record)
    ratio = confidence(SMALL, s) if not far else confidence(max(abs(m), s), FAR)
    scale = f"mean {number(m)}, standard deviation {number(s)}"
    return [
        CAUSE.finding(
            severity,
            ratio if severity != "info" else min(ratio, 0.5),
            f"The inputs have {scale}, far from mean 0 and scale 1{harm}. "
            f"To standardise: (x - {number(m)}) / {number(s)}.",
            onset=int(source.steps[index - 2]),
            detected=detected,
            event=event.step if event else None,
            evidence=[
                Evidence("input_mean", m, FAR, 0.0, detected),
                Evidence("input_std", s, SMALL if not far else FAR, 1.0, detected),
            ],
        )
    ]


def _harm(record: Record) -> tuple[Severity, str, LossEvent | None]:
    early = [event for event in find_events(record) if event.step <= EARLY]
    for event in early:
        if event.kind == "divergence":
            return "error", f"; {event.phrase}", event
    start, uniform = _first_loss(record), _uniform_loss(record)
    if start > 3 * uniform:
        return "warning", f"; the first loss was {number(start)}, that of a guess is {number(uniform)}", None
    for name, series in record.by_layer("dead_units").items():
        if len(series.steps) and np.nanmax(series.values, initial=0.0) > 0.5:
            return "warning", f"; units of {name} died", None
    if early:
        return "warning", f"; {early[0].phrase}", early[0]
    return "info", "", None


def _first_loss(record: Record) -> float:
    values = record["loss"].values
    return float(values[0]) if len(values) else math.nan


def _uniform_loss(record: Record) -> float:
    classes = record["classes"].values
    return math.log(classes[0]) if len(classes) and classes[0] > 1 else math.inf


CAUSE = Cause(
    id="unscaled_inputs",
    title="The inputs are not scaled",
    find=find,
    exact=False,
    doc=__doc__,
    family="data",
    leads_to=("saturation", "stale_second_moment"),
    remedies=("lr_scale", "warmup", "clip_grad_norm"),
)
