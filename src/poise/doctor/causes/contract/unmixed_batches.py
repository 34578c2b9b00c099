"""The batches are not mixed: each holds examples of one kind.

## What it is
Examples come in the order of a file (one class after the other, one recording after the other), and a batch holds
neighbours.

## Why it hurts
The gradient of a batch speaks for one kind only, and the model unlearns the others until they come again. Batch norm
normalises each batch by statistics of its kind, which hides what tells the kinds apart; in evaluation it uses those
of all kinds, and the model that was good in training fails.

## How it is detected
The labels of ten batches or more: their entropy within batches is below 60 % of that of all together, and beyond what
small batches explain. Or the inputs of ten batches, where the model has batch norm: an analysis of variance finds
between batches over four times the variance that chance makes, and more than a tenth of all of it.

## What cures it
```python
loader = DataLoader(data, batch_size=64)  # bad for sorted data
loader = DataLoader(data, batch_size=64, shuffle=True)  # good
```

## References
- Ioffe and Szegedy, *Batch normalization: accelerating deep network training by reducing internal covariate shift*,
  ICML 2015, arXiv:1502.03167
- Bottou, *Curiously fast convergence of some stochastic gradient descent algorithms*, 2009
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import first_event
from poise.doctor.causes.reading import EXACT, number
from poise.report.finding import Evidence, Finding
from poise.store import Event, Record


def find(record: Record) -> list[Finding]:
    """Find batches that each hold examples of one kind."""
    labels, inputs = first_event(record, "labels_unmixed"), first_event(record, "inputs_unmixed")
    if labels is not None and (inputs is None or labels.step <= inputs.step):
        within, together = float(labels.payload["within"]), float(labels.payload["together"])
        said = (
            f"The labels of one batch have an entropy of {number(within)}, those of all batches {number(together)}: "
            f"each "
            "batch holds few of the classes. Shuffle the examples."
        )
        return [_finding(labels, said, Evidence("label_entropy", within, 0.6 * together, together, labels.step))]
    if inputs is None:
        return []
    ratio, share = float(inputs.payload["ratio"]), float(inputs.payload["share"])
    said = (
        f"{number(100 * share)} % of the variance of the inputs lies between batches ({number(ratio)} times as much as "
        "chance makes): each batch holds examples of one kind, and batch norm learns statistics that evaluation "
        "does not "
        "have. Shuffle the examples."
    )
    return [_finding(inputs, said, Evidence("input_variance_between", ratio, 4.0, 1.0, inputs.step))]


def _finding(event: Event, said: str, evidence: Evidence) -> Finding:
    return CAUSE.finding("warning", EXACT, said, onset=0, detected=event.step, evidence=[evidence])


CAUSE = Cause(
    id="unmixed_batches",
    title="The batches are not mixed",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
    leads_to=(
        "label_problem",
        "benign_catapult",
        "warmup_too_short",
    ),
)
