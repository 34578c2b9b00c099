"""Softmax runs over the batch in the place of the classes.

## What it is
A softmax or log-softmax has `dim=0`: it makes the examples of a batch compete for one class, where the classes of one
example should compete.

## Why it hurts
What the model says of an example depends on which others are in its batch, and the outputs of one example are no
probabilities. An evaluation with another batch size gives other answers.

## How it is detected
A fact: the graph says that the input of the loss, one row an example, was made by a softmax over dimension 0. Or a
softmax within the model runs over a first dimension that is as long as that of the model's input and output, where
these, or the square of queries and keys, say that it is the batch. Not for a matrix of all pairs of examples, a single
column (a weight for each member of a set), and what is made of parameters alone.

## What cures it
```python
log_p = F.log_softmax(z, dim=0)  # bad
log_p = F.log_softmax(z, dim=1)  # good: over the classes
weights = F.softmax(scores, dim=0)  # bad: scores are (batch, time)
weights = F.softmax(scores, dim=-1)  # good
```

## References
- PyTorch documentation, *torch.nn.functional.log_softmax*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record


def find(record: Record) -> list[Finding]:
    """Find a softmax over the examples of a batch."""
    event = first_event(record, "softmax_over_batch")
    if event is None:
        return []
    if "module" in event.payload:
        return [_in_model(event)]
    name = "log_softmax" if event.payload.get("made_by") == "logsoftmax" else "softmax"
    applies_its_own = event.payload.get("function") == "cross_entropy"
    cure = "Leave it out: cross_entropy applies its own" if applies_its_own else "Use dim=1"
    return [
        CAUSE.finding(
            "error",
            EXACT,
            f"The input of {event.payload['function']}{at_line(event)} was made by a {name} over dimension 0, the "
            f"examples of the batch. {cure}.",
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("softmax_dimension", 0.0, None, 1.0, event.step)],
        )
    ]


def _in_model(event: Event) -> Finding:
    module, shape = str(event.payload["module"]), tuple(event.payload["shape"])
    return CAUSE.finding(
        "error",
        EXACT,
        f"A softmax in {module or 'the model'}{at_line(event)} runs over dimension 0 of {shape}, the {shape[0]} "
        "examples of the batch: the answer for one example depends on the others. Use the dimension of what "
        "competes, often dim=-1.",
        where=[module] if module else [],
        onset=event.step,
        detected=event.step,
        evidence=[Evidence("softmax_dimension", 0.0, None, float(len(shape) - 1), event.step)],
    )


CAUSE = Cause(
    id="softmax_over_batch",
    title="Softmax runs over the batch",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "double_softmax",
        "nll_input",
    ),
)
