"""The Kullback-Leibler divergence is given something else than log-probabilities and probabilities.

## What it is
`kl_div(input, target)` wants the *logarithm* of the model's probabilities, and for the target probabilities (or, with
`log_target=True`, their logarithm too).

## Why it hurts
With probabilities as input the loss is negative and falls without a bound in the wrong direction: it is linear in the
input, and best where the model gives everything to one class.

## How it is detected
A fact: an input above 0 is the logarithm of no probability; a target below 0 is no probability (with `log_target=True`,
one above 0 is no logarithm of one).

## What cures it
```python
loss = F.kl_div(F.softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")  # bad
loss = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")  # good
```

## References
- PyTorch documentation, *torch.nn.KLDivLoss*
- Hinton, Vinyals and Dean, *Distilling the knowledge in a neural network*, 2015, arXiv:1503.02531
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find arguments of a KL divergence that are not what it wants."""
    event = first_event(record, "kl_div_input")
    if event is None:
        return []
    if "input" in (event.payload.get("wrong") or ()):
        kind = event.payload.get("given") or "logits"
        said = f"is given {kind} as input, and wants log-probabilities. Use log_softmax for it"
    else:
        said = (
            "is given a target that is not of the kind that log_target says. Set log_target=True for log-probabilities"
        )
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"kl_div{at_line(event)} {said}.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("log_probabilities_given", 0.0, None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="kl_div_input",
    title="kl_div is not given log-probabilities",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=("label_problem",),
)
