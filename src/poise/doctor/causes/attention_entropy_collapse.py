"""Attention has collapsed onto single tokens.

## What it is
In most heads, each query puts nearly all its weight on one key, while the logits are not unusually large for the run:
it began like this (a missing `1 / sqrt(d_head)`, weights that are too large), or the spread was lost on the way.

## Why it hurts
Attention with all weight on one token passes next to no gradient to queries and keys: which token it reads can hardly
be changed any more, and what needs several tokens cannot be computed.

## How it is detected
In at least half of the attention layers `attention_entropy_median[layer]`, the entropy of the median head (1: uniform,
0: one token), is below 0.1 in three consecutive samples, and the loss stalls or diverges afterwards. Without that it is
*info*: single heads of healthy networks attend to one token, and so do most heads of some trained ones. Where the
logits have outgrown their early values, `attention_logit_growth` explains it.

## What cures it
Divide the logits by `sqrt(d_head)`, normalise queries and keys, cap the logits; a lower learning rate or a longer
warm-up where the entropy was lost in the first steps.

```python
weights = (q @ k.mT).softmax(-1)  # bad: the logits grow with the width of the head
weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # good
```

## References
- Zhai et al., *Stabilizing Transformer training by preventing attention entropy collapse*, ICML 2023, arXiv:2303.06296
- Vaswani et al., *Attention is all you need*, NeurIPS 2017, arXiv:1706.03762
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, first_run, layer_table, listing, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

COLLAPSED, SAMPLES = 0.1, 3


def find(record: Record) -> list[Finding]:
    """Find attention most of whose heads look at one token."""
    layers = record.by_layer("attention_entropy_median")
    steps, table = layer_table(layers)
    if not len(steps):
        return []
    low = table < COLLAPSED  # NaN is not
    known = np.maximum.accumulate(np.isfinite(table)).sum(axis=1)  # layers seen so far
    index = first_run((low.sum(axis=1) > 0) & (2 * low.sum(axis=1) >= known), SAMPLES)
    if index is None:
        return []
    names = list(layers)
    where = [names[j] for j in np.argsort(table[index]) if low[index, j]]
    onset, detected = int(steps[index - SAMPLES + 1]), int(steps[index])
    entropy = float(np.nanmin(table[index]))
    event = following([e for e in find_events(record) if e.kind != "spike"], onset)
    return [
        CAUSE.finding(
            "info",
            confidence(COLLAPSED, max(entropy, 1e-6)),
            f"Most heads of {listing(where)} put nearly all weight on one token (entropy {number(entropy)} of 1).",
            where=where,
            onset=onset,
            detected=detected,
            event=event,
            severity_with_event="error",
            evidence=[Evidence(f"attention_entropy_median[{where[0]}]", entropy, COLLAPSED, None, detected)],
        )
    ]


CAUSE = Cause(
    id="attention_entropy_collapse",
    title="Attention has collapsed onto single tokens",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    remedies=("logit_soft_cap", "qk_norm", "lr_scale", "warmup"),
)
