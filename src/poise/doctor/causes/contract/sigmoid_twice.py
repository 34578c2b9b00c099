"""Sigmoid is applied twice.

## What it is
`binary_cross_entropy_with_logits` applies a sigmoid, and it is given probabilities: the model ends in a sigmoid, too.

## Why it hurts
A probability between 0 and 1, taken for a logit, becomes one between 0.5 and 0.73. No example can be called negative,
the loss stays above 0.31 for positive and 0.69 for negative examples, and gradients are small.

## How it is detected
A fact: the autograd graph says that the input of the loss was made by a sigmoid or a softmax; or, where it says
nothing, all inputs of the first calls lie between 0 and 1.

## What cures it
```python
loss = F.binary_cross_entropy_with_logits(torch.sigmoid(z), y)  # bad
loss = F.binary_cross_entropy_with_logits(z, y)  # good
```

## References
- PyTorch documentation, *torch.nn.BCEWithLogitsLoss*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find probabilities given to a binary cross-entropy that wants logits."""
    event = first_event(record, "sigmoid_twice")
    if event is None:
        return []
    made_by = event.payload.get("made_by") or ""
    what = f"the output of a {made_by}" if made_by else "numbers between 0 and 1"
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"binary_cross_entropy_with_logits{at_line(event)} is given {what}, and applies a sigmoid itself: no "
            "probability can fall below 0.5. Give it the numbers before the sigmoid.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("logits_are_probabilities", 1.0, None, 0.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="sigmoid_twice",
    title="Sigmoid is applied twice",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
