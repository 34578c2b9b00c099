"""The negative log-likelihood is not given log-probabilities.

## What it is
`nll_loss` only picks the number at the label and changes its sign. It wants log-probabilities, and is given logits or
probabilities.

## Why it hurts
With logits the loss has no lower bound: it falls below zero, and the model learns to make all its outputs large. With
probabilities it lies between -1 and 0, and hardly punishes a wrong answer.

## How it is detected
A fact: the exponentials of the inputs do not sum to 1 over the classes, in three calls.

## What cures it
```python
loss = F.nll_loss(model(x), y)  # bad: logits
loss = F.nll_loss(F.log_softmax(model(x), dim=1), y)  # good
loss = F.cross_entropy(model(x), y)  # good: both in one
```

## References
- PyTorch documentation, *torch.nn.NLLLoss*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find logits or probabilities where log-probabilities are wanted."""
    event = first_event(record, "nll_input")
    if event is None:
        return []
    kind = str(event.payload.get("given") or "logits")
    cure = "Use cross_entropy" if kind == "logits" else "Use log_softmax in the place of softmax"
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"nll_loss{at_line(event)} is given {kind}, and wants log-probabilities: its loss has no meaning and can "
            f"be negative. {cure}.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("log_probabilities_given", 0.0, None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="nll_input",
    title="nll_loss is not given log-probabilities",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "label_problem",
        "attention_logit_growth",
    ),
)
