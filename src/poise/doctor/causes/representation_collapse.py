"""Embeddings collapse to one direction.

## What it is
A network whose outputs are compared by direction (contrastive or self-supervised learning, metric learning) returns
nearly the same vector for all inputs.

## Why it hurts
The loss may be perfect: equal vectors are as similar as can be. But nothing can be told from them.

## How it is detected
At the end of the script: `embedding_spread` (0: all vectors of a batch are one, 1: they point everywhere) was below 0.1
and below a fifth of its largest value in each of the last three samples, after at least 50 steps. It is judged at the
end because some methods come near to collapse early and recover. Seen are vectors given to `F.normalize`,
`F.triplet_margin_loss` or `nn.CosineSimilarity`.

## What cures it
Negative pairs, or what stands in for them: a stopped gradient and a predictor on one side, a batch norm in the
projector, a variance term. A loss of positive pairs alone always collapses.

```python
loss = -cosine(f(x1), f(x2)).mean()  # bad: the constant is the best f
loss = -cosine(predictor(f(x1)), f(x2).detach()).mean()  # good
```

## References
- Chen and He, *Exploring simple Siamese representation learning*, CVPR 2021, arXiv:2011.10566
- Bardes, Ponce and LeCun, *VICReg: variance-invariance-covariance regularization for self-supervised learning*, ICLR
  2022, arXiv:2105.04906
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number
from poise.report.finding import Evidence, Finding
from poise.store import Record

SMALL, FRACTION, SAMPLES, STEPS = 0.1, 0.2, 3, 50


def find(record: Record) -> list[Finding]:
    """Find embeddings that have collapsed by the end."""
    ends, spread = record.events("script_end"), record["embedding_spread"]
    values = np.asarray(spread.values, dtype=float)
    if not ends or len(values) <= SAMPLES or spread.steps[-1] < STEPS or not np.isfinite(values).all():
        return []
    largest, limit = float(values.max()), min(SMALL, FRACTION * float(values.max()))
    if not (values[-SAMPLES:] < limit).all():
        return []
    wide = np.flatnonzero(values >= limit)
    onset, now = int(spread.steps[wide[-1] + 1]), float(values[-1])
    return [
        CAUSE.finding(
            "error",
            confidence(limit, max(now, 1e-6)),
            f"The embeddings of all inputs are nearly one vector: their spread fell from {number(largest)} to "
            f"{number(now)} of 1.",
            onset=onset,
            detected=max(ends[-1].step, record.last_step),
            evidence=[Evidence("embedding_spread", now, limit, largest, int(spread.steps[-1]))],
        )
    ]


CAUSE = Cause(
    id="representation_collapse",
    title="Embeddings collapse to one direction",
    find=find,
    exact=False,
    doc=__doc__,
    family="representations",
)
