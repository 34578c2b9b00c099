"""A normalisation runs over the batch.

## What it is
A layer norm whose `normalized_shape` holds the batch, or `F.normalize(x, dim=0)`, divides the features of one example
by numbers that are made of all examples of its batch. Unlike batch norm, it does so in evaluation, too.

## Why it hurts
What the model says of an example depends on which others are in its batch and on how many they are: an evaluation with
another batch size gives other answers, and a single example is normalised by itself alone.

## How it is detected
A fact, from shapes: the dimension that is normalised over is as long as the first of the model's input and output, and
the output has one row an example. Not for what is made of parameters alone.

## What cures it
```python
self.norm = nn.LayerNorm([64, 128])  # bad for batches of 64 examples with 128 features
self.norm = nn.LayerNorm(128)  # good
z = F.normalize(z, dim=0)  # bad for one row an example
z = F.normalize(z, dim=1)  # good
```

## References
- Ba, Kiros and Hinton, *Layer normalization*, 2016, arXiv:1607.06450
- PyTorch documentation, *torch.nn.LayerNorm* and *torch.nn.functional.normalize*
"""

from __future__ import annotations

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.contract.first_event import at_line, first_event
from poise.doctor.causes.reading import EXACT
from poise.report.finding import Evidence, Finding
from poise.store import Record


def find(record: Record) -> list[Finding]:
    """Find a normalisation over the examples of a batch."""
    event = first_event(record, "norm_over_batch")
    if event is None:
        return []
    module, shape = str(event.payload["module"]), tuple(event.payload["shape"])
    if event.payload["function"] == "layer_norm":
        said = f"The layer norm {module} normalises over all of {shape}"
        cure = f"Make it for the features: LayerNorm({shape[-1]})"
    else:
        said = f"normalize in {module or 'the model'}{at_line(event)} runs over dimension 0 of {shape}"
        cure = "Use the dimension of the features, dim=1 or dim=-1"
    return [
        CAUSE.finding(
            "warning",
            EXACT,
            f"{said}, the {shape[0]} examples of the batch included: the answer for one example depends on the others. "
            f"{cure}.",
            where=[module] if module else [],
            onset=event.step,
            detected=event.step,
            evidence=[Evidence("normalised_over", float(shape[0]), None, 1.0, event.step)],
        )
    ]


CAUSE = Cause(
    id="norm_over_batch",
    title="A normalisation runs over the batch",
    find=find,
    exact=True,
    doc=__doc__,
    family="contract",
)
