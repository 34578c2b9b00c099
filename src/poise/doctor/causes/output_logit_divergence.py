"""Output logits drift away from zero.

## What it is
All output logits drift away from zero together, mostly to large negative values. Softmax does not change when all
logits are shifted by the same amount, so nothing in the loss keeps them near zero.

## Why it hurts
In low precision the differences between logits, which do matter, are rounded away once the logits are large: the loss
becomes noisy and diverges. In float32 it wastes range and is noticed late.

## How it is detected
The shift common to all logits (the mean logit where it is positive, minus the log-sum-exp where that is negative)
exceeds 20 and three times its early value in three consecutive samples, and grew by a tenth within 20 steps.
Confident classifiers, whose logits grow apart but not away, have no common shift. Besides, a log-sum-exp above 100
and ten times its early value while the loss is no better than half of where it started.

## What cures it
z-loss, `1e-4 * logsumexp(logits)**2` added to the loss; weight decay on the output layer.

```python
loss = F.cross_entropy(logits, y)  # bad: does not depend on a common shift
loss = loss + 1e-4 * logits.logsumexp(-1).square().mean()  # good: keeps log Z near 0
```

## References
- Chowdhery et al., *PaLM: scaling language modeling with Pathways*, JMLR 2023, arXiv:2204.02311
- Wortsman et al., *Small-scale proxies for large-scale Transformer training instabilities*, ICLR 2024,
  arXiv:2309.14322
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import align, confidence, extreme_after, first_run, number, own_baseline
from poise.doctor.events import find_events, following, loss_curve
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

SHIFT, HUGE = 20.0, 100.0


def find(record: Record) -> list[Finding]:
    """Find logits that leave zero together, or blow up while predictions are bad."""
    lse = record["logit_lse"]
    if not len(lse.steps):
        return []
    shift = _common_shift(record, lse)
    early = np.nan_to_num(own_baseline(shift))
    # Still growing: otherwise a pretrained model whose logits have always been far from zero would be blamed.
    growing = shift > 1.1 * align(Series(lse.steps, shift), lse.steps - 20)
    drifted = first_run((shift > np.maximum(SHIFT, 3 * early)) & growing, 3)
    blown = first_run(_blown_up(record, lse), 3)
    hits = [i for i in (drifted, blown) if i is not None]
    if not hits:
        return []
    i = min(hits)
    name, threshold = ("logit_lse", HUGE) if i == blown else ("logit_mean", SHIFT)
    series = lse if i == blown or not len(record["logit_mean"].steps) else record["logit_mean"]
    onset, detected = int(lse.steps[max(i - 2, 0)]), int(lse.steps[i])
    peak, peak_step = extreme_after(series, detected)
    event = following(find_events(record), onset)
    before = float(own_baseline(np.asarray(series.values))[-1])
    return [
        CAUSE.finding(
            "warning",
            confidence(abs(peak), threshold),
            f"The output logits drifted away from zero: {'log-sum-exp' if i == blown else 'mean logit'} went from "
            f"{number(before)} to {number(peak)} by step {peak_step}.",
            onset=onset,
            detected=detected,
            event=event,
            severity_with_event="error",
            evidence=[Evidence(name, peak, threshold, before, peak_step)],
        )
    ]


def _common_shift(record: Record, lse: Series) -> np.ndarray:
    # log Z >= mean logit + log C, so both have the same sign exactly when all mass has moved to one side.
    z = np.asarray(lse.values)
    mean = align(record["logit_mean"], lse.steps)
    shift = np.maximum(np.where(np.isfinite(mean), mean, 0.0), 0.0) + np.maximum(-z, 0.0)
    return np.where(np.isfinite(shift), shift, 0.0)


def _blown_up(record: Record, lse: Series) -> np.ndarray:
    curve = loss_curve(record)
    if not len(curve.steps):
        return np.zeros(len(lse.steps), dtype=bool)
    early = np.abs(own_baseline(np.asarray(lse.values)))
    size = np.where(np.isnan(lse.values), 0.0, np.abs(lse.values))  # NaN has a cause of its own
    level = align(Series(curve.steps, curve.level), lse.steps)
    start = align(Series(curve.steps, curve.start), lse.steps)
    return (size > np.maximum(HUGE, 10 * np.nan_to_num(early))) & (level > 0.5 * start)


CAUSE = Cause(
    id="output_logit_divergence",
    title="Output logits drift away from zero",
    find=find,
    exact=False,
    doc=__doc__,
    family="activations and logits",
    leads_to=("fp16_overflow",),
    remedies=("z_loss", "weight_decay", "lr_scale"),
)
