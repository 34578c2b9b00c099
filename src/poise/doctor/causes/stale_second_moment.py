"""Adam's second moment is out of date.

## What it is
Adam divides a gradient by the root of its running mean square. With a slow average (`beta2` near 1) that mean is out
of date when gradients suddenly grow: the update then is many times larger than the learning rate intends.

## Why it hurts
One such step moves the weights far away. The loss spikes one to eight steps later and may stay high.

## How it is detected
`adam_rms[p] = sqrt(mean(g² / max(v, eps²)))`, with `v` after this gradient, is about 1 in a healthy run (99 % stay
below 1.9, none above 2.4) and at most `1/sqrt(1 - beta2)`. It is too large where at least two weight matrices exceed
2.3 and the largest exceeds 4, and a loss spike or divergence follows within 10 steps. If the loss is high at the very
step of the large gradient, the batch may only be a hard one: then the loss must stay high after the update.

## What cures it
Clip the update by its RMS, use a faster second moment (`beta2 = 0.95`), or clip gradients per tensor.

```python
torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.999))  # bad where gradients jump: averages over 1000 steps
torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95))  # good: over 20
```

## References
- Wortsman et al., *Stable and low-precision training for large-scale vision-language models*, NeurIPS 2023,
  arXiv:2304.13013
- Shazeer and Stern, *Adafactor: adaptive learning rates with sublinear memory cost*, ICML 2018, arXiv:1804.04235
- Molybog et al., *A theory on Adam instability in large-scale machine learning*, 2023, arXiv:2304.09871
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, layer_table, listing, number
from poise.doctor.events import LossEvent, breakdowns, find_events, stayed_up
from poise.report.finding import Evidence, Finding
from poise.store import Record

MANY, ONE = 2.3, 4.0
WITHIN = 10
SEASONED = 10


def find(record: Record) -> list[Finding]:
    """Find updates that were too large for Adam's second moment and harmed the run."""
    layers = record.by_layer("adam_rms")
    steps, table = layer_table(layers)
    if not len(steps):
        return []
    values = np.where(np.isinf(table), 1e6, np.nan_to_num(table))
    # Before, v is the mean of too few gradients for the ratio to mean much: it cannot exceed sqrt(step + 1).
    seasoned = steps >= SEASONED
    too_large = seasoned & ((values > MANY).sum(axis=1) >= min(2, len(layers))) & (values.max(axis=1) > ONE)
    events = breakdowns(find_events(record))
    known = [(*pair, row) for row in np.flatnonzero(too_large) if (pair := _harm(record, events, int(steps[row])))]
    if not known:
        return []
    detected, event, row = min(known, key=lambda found: (found[0], found[2]))
    step, names = int(steps[row]), list(layers)
    worst = [names[j] for j in np.argsort(-values[row]) if values[row, j] > MANY]
    top = float(values[row].max())
    return [
        CAUSE.finding(
            "error",
            confidence(top, ONE),
            f"At step {step} Adam's updates of {listing(worst)} were {number(top)} times larger than its second moment "
            f"allows for (it had adapted to smaller gradients).",
            where=worst,
            onset=step,
            detected=detected,
            event=event,
            evidence=[Evidence(f"adam_rms[{worst[0]}]", top, ONE, 1.0, step)],
        )
    ]


def _harm(record: Record, events: list[LossEvent], step: int) -> tuple[int, LossEvent] | None:
    """Return the first event that the update of ``step`` explains, and when that is known."""
    known = []
    for event in events:
        if not step <= event.step <= step + WITHIN:
            continue
        stays = stayed_up(record, event) if event.step == step else (True, event.detected_step)
        if stays is not None and stays[0]:
            known.append((max(step, event.detected_step, stays[1]), event))
    return min(known, key=lambda pair: pair[0], default=None)


CAUSE = Cause(
    id="stale_second_moment",
    title="Adam's second moment is out of date",
    find=find,
    exact=False,
    doc=__doc__,
    family="optimizer",
    leads_to=("exploding_gradients",),
    remedies=("clip_update_rms", "beta2", "clip_grad_norm", "lr_scale"),
)
