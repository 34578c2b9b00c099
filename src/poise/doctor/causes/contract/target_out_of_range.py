"""Targets lie outside the range that the loss is defined for.

## What it is
A binary cross-entropy is given targets that are no probabilities (a mask of 0 and 255, say), or a cross-entropy labels
below 0 or beyond the last class.

## Why it hurts
With a target of 255 the best logit is infinite: the loss runs to minus infinity and the model says yes everywhere. A
label beyond the classes is an error on the CPU, and on a GPU one that says nothing of its reason.

## How it is detected
A fact: the smallest and the largest target are compared with the range of the loss. Targets that a weight or
`reduction="none"` may leave out are not looked at.

## What cures it
```python
loss = F.binary_cross_entropy_with_logits(z, mask)  # bad: mask holds 0 and 255
loss = F.binary_cross_entropy_with_logits(z, mask / 255)  # good
loss = F.cross_entropy(z, y - 1)  # good, where classes count from 1
```

## References
- PyTorch documentation, *torch.nn.BCEWithLogitsLoss* and *torch.nn.CrossEntropyLoss*
"""

from __future__ import annotations

import re

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find targets that a loss is not defined for."""
    event = first_event(record, "target_out_of_range")
    if event is None:
        return _out_of_bounds(record)
    low, high, (least, most) = float(event.payload["low"]), float(event.payload["high"]), event.payload["want"]
    if event.payload["function"] in ("cross_entropy", "nll_loss"):
        cure = f"Classes count from 0: the model has {int(most) + 1}"
    elif low >= 0:
        cure = f"Divide them by {number(high)}"
    else:
        cure = "Shift and scale them to 0 and 1"
    return [_finding(event.step, f"{event.payload['function']}{at_line(event)}", low, high, least, most, cure)]


def _finding(step: int, loss: str, low: float, high: float, least: float, most: float, cure: str) -> Finding:
    return CAUSE.finding(
        "error",
        EXACT,
        f"The targets of {loss} reach from {number(low)} to {number(high)}; it is defined for {number(least)} to "
        f"{number(most)}. {cure}.",
        onset=step,
        detected=step,
        evidence=[Evidence("target_max", high, most, None, step), Evidence("target_min", low, least, None, step)],
    )


def _out_of_bounds(record: Record) -> list[Finding]:
    """Read the error with which torch ends a script for a label that no class has."""
    for event in record.events("script_end"):
        label = re.search(r"Target (-?\d+) is out of bounds", str(event.payload.get("detail") or ""))
        if label:
            return [
                CAUSE.finding(
                    "error",
                    EXACT,
                    f"A label of {label[1]} is beyond the classes of the model. Classes count from 0.",
                    onset=event.step,
                    detected=event.step,
                    evidence=[Evidence("target_max", float(label[1]), None, None, event.step)],
                )
            ]
    return []


CAUSE = Cause(
    id="target_out_of_range",
    title="Targets lie outside their range",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "label_problem",
        "warmup_too_short",
    ),
)
