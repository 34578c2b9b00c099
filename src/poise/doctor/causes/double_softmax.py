"""Softmax is applied twice.

## What it is
Probabilities are passed to a loss that expects logits: softmax is applied twice.

## Why it hurts
The second softmax of numbers between 0 and 1 is nearly uniform. The loss cannot fall below `log(1 + (C - 1)/e)` (1.46
for ten classes), gradients are small, and training is slow and ends early, without any error.

## How it is detected
A fact: the autograd graph says that the input of `cross_entropy` was made by a softmax or a sigmoid; or, where it says
nothing, every row of it lies in [0, 1] and sums to 1, in three calls or three consecutive samples.
Log-probabilities are harmless (log-softmax of them changes nothing) and not reported.

## What cures it
```python
loss = F.cross_entropy(model(x).softmax(-1), y)  # bad
loss = F.cross_entropy(model(x), y)  # good
```

## References
- PyTorch documentation, *torch.nn.CrossEntropyLoss*
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, first_run, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a cross-entropy that is given probabilities."""
    event = first_event(record, "softmax_twice")
    if event is not None:
        made_by = event.payload.get("made_by") or ""
        what = f"the output of a {made_by}" if made_by else "probabilities"
        return [_finding(f"cross_entropy{at_line(event)} is given {what}", event.step, float(event.payload["classes"]))]
    flags = record["logits_are_probabilities"]
    index = first_run(np.asarray(flags.values) > 0.5, 3)
    if index is None:
        return []
    classes = record["classes"].values
    step = int(flags.steps[index])
    return [_finding("The cross-entropy loss is given probabilities", step, float(classes[0]) if len(classes) else 0.0)]


def _finding(said: str, step: int, classes: float) -> Finding:
    floor = ""
    if classes > 1:
        best = math.log(1 + (classes - 1) / math.e)
        floor = f"; with {classes:.0f} classes it cannot fall below {number(best)}"
    return CAUSE.finding(
        "error",
        EXACT,
        f"{said}, not logits: softmax is applied twice{floor}. Give it the numbers before the softmax.",
        onset=0,
        detected=step,
        evidence=[Evidence("logits_are_probabilities", 1.0, None, 0.0, step)],
    )


CAUSE = Cause(
    id="double_softmax",
    title="Softmax is applied twice",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
