"""Activations grow exponentially over residual blocks.

## What it is
Each block adds something of the size of its input: the sum grows by a constant factor from block to block, and with it
the output, which is dominated by the last blocks.

## Why it hurts
Outputs and gradients are orders of magnitude too large from the first step on. The learning rate that the last blocks
bear is far too small for the others; the loss starts far above that of a guess, or the first blocks do not count.

## How it is detected
At the initialisation, over at least eight blocks of one class most of which add their input (event `blocks`): the RMS
of the last block's output is more than 100 times that of the first, and in each half of the blocks it grows by more
than a factor of 2 per four blocks, in the first sample, in weights that were not loaded. Normalised inputs of the
branches (pre-norm) give growth with the square root of depth, which this does not hold for.

## What cures it
Normalise the input of each branch (pre-norm), multiply the branches by `1 / sqrt(blocks)`, or initialise the last map
of each branch at zero or with a standard deviation divided by `sqrt(2 * blocks)`.

```python
x = x + block(x)  # bad: the variance doubles with every block
x = x + block(norm(x))  # good
```

## References
- Zhang, Dauphin and Ma, *Fixup initialization: residual learning without normalization*, ICLR 2019, arXiv:1901.09321
- De and Smith, *Batch normalization biases residual blocks towards the identity function in deep networks*, NeurIPS
  2020, arXiv:2002.10444
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, layer_table, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

GROWTH, PER_FOUR, FEWEST = 100.0, 2.0, 8


def find(record: Record) -> list[Finding]:
    """Find residual blocks whose sum grows exponentially with depth, before training has changed much."""
    names = _residual_blocks(record)
    steps, table = layer_table({name: record[f"act_rms[{name}]"] for name in names})
    if len(names) < FEWEST or not len(steps):
        return []
    row = table[0]
    half = len(names) // 2
    if not (np.isfinite(row) & (row > 0)).all():
        return []
    growth = float(row[-1] / row[0])
    halves = (row[half] / row[0]) ** (4 / half), (row[-1] / row[half]) ** (4 / (len(names) - 1 - half))
    if growth <= GROWTH or min(halves) <= PER_FOUR:
        return []
    onset = int(steps[0])
    known = max(onset, next(event.step for event in record.events("blocks")))
    events = [e for e in find_events(record) if e.kind != "spike"]
    return [
        CAUSE.finding(
            "warning",
            confidence(growth, GROWTH),
            f"Activations grow {number(growth)} times over {len(names)} residual blocks, from {names[0]} to "
            f"{names[-1]}: each block adds as much as it is given.",
            where=[names[-1], names[0]],
            onset=onset,
            detected=known,
            event=following(events, onset),
            severity_with_event="error",
            evidence=[
                Evidence("act_rms last/first block", growth, GROWTH, None, onset),
                Evidence(f"act_rms[{names[-1]}]", float(row[-1]), None, float(row[0]), onset),
            ],
        )
    ]


def _residual_blocks(record: Record) -> list[str]:
    loaded = any(event.payload.get("loaded_share", 0.0) > 0 for event in record.events("first_step"))
    for event in record.events("blocks")[:1]:
        names = list(event.payload["names"])
        if not loaded and 2 * event.payload["residual"] >= len(names):
            return names
    return []


CAUSE = Cause(
    id="residual_explosion",
    title="Activations grow exponentially over residual blocks",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("exploding_gradients",),
    remedies=("clip_grad_norm", "warmup", "lr_scale"),
)
