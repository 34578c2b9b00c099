"""Gradients of a post-norm network are unbalanced over depth.

## What it is
Each block normalises the sum of its input and its branch. On its way back the gradient passes every one of these norms,
each of which divides it by about the square root of 2: the last blocks get far more than the first.

## Why it hurts
The learning rate that the last blocks bear hardly moves the first. Without a long warm-up the last blocks are thrown
out of range in the first steps; the outputs of all tokens become equal, and gradients vanish for good.

## How it is detected
Most of at least four blocks of one class return what their own LayerNorm has returned (event `blocks`); in one of the
first three samples the median gradient norm of the weight matrices of the first block is less than a tenth of that of
the last, or more than ten times it; and the loss stalls or diverges. Without that it is *info*.

## What cures it
Pre-norm (normalise the input of the branch and once after the last block), a longer warm-up, a lower learning rate.

```python
x = norm(x + branch(x))  # post-norm: needs warm-up, more so with every block
x = x + branch(norm(x))  # pre-norm
```

## References
- Xiong et al., *On layer normalization in the Transformer architecture*, ICML 2020, arXiv:2002.04745
- Liu et al., *Understanding the difficulty of training Transformers*, EMNLP 2020, arXiv:2004.08249
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, layer_table, matrices, number
from poise.doctor.events import find_events, following
from poise.report.finding import Evidence, Finding
from poise.store import Record

RATIO, SAMPLES = 10.0, 3


def find(record: Record) -> list[Finding]:
    """Find post-norm blocks whose first and last get gradients of different size, in a run that fails."""
    blocks = _post_norm_blocks(record)
    if not blocks:
        return []
    norms = matrices(record.by_layer("grad_norm"), record)
    (steps, first), (_, last) = (
        layer_table({n: s for n, s in norms.items() if n.startswith(f"{block}.")}) for block in (blocks[0], blocks[-1])
    )
    if not first.size or first.shape[0] != last.shape[0]:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (_median(last) / _median(first))[:SAMPLES]
    unbalanced = np.flatnonzero((ratio > RATIO) | (ratio < 1 / RATIO))
    if not len(unbalanced):
        return []
    i = int(unbalanced[0])
    step, value = int(steps[i]), float(ratio[i])
    known = max(step, next(event.step for event in record.events("blocks")))
    event = following([e for e in find_events(record) if e.kind != "spike"], step)
    more, less = (blocks[-1], blocks[0]) if value > 1 else (blocks[0], blocks[-1])
    factor = max(value, 1 / max(value, 1e-30))
    return [
        CAUSE.finding(
            "info",
            confidence(factor, RATIO),
            f"The blocks normalise their sums (post-norm), and {more} gets {number(factor)} times the gradient of "
            f"{less}.",
            where=[less, more],
            onset=step,
            detected=known,
            event=event,
            severity_with_event="error",
            evidence=[Evidence("grad_norm last/first block", value, RATIO, None, step)],
        )
    ]


def _post_norm_blocks(record: Record) -> list[str]:
    for event in record.events("blocks")[:1]:
        names = list(event.payload["names"])
        return names if 2 * event.payload["post_norm"] > len(names) else []
    return []


def _median(norms: np.ndarray) -> np.ndarray:
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in norms])


CAUSE = Cause(
    id="postnorm_gradient_imbalance",
    title="Post-norm gradients are unbalanced over depth",
    find=find,
    exact=False,
    doc=__doc__,
    family="gradients",
    leads_to=("vanishing_gradients",),
    remedies=("warmup", "lr_scale"),
)
