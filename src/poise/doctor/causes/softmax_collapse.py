"""The softmax has collapsed: rounding, not convergence, stopped the loss.

## What it is
In `cross_entropy` the terms of the wrong classes are added to that of the leading one. Once a logit leads by more than
16.6 (float32; 36.7 in float64) the sum is exactly 1: the others are absorbed by rounding.

## Why it hurts
Where the leading class is the right one, the loss of that sample and its gradient are exactly zero. The network stops
learning from it, however much there was left to learn (generalisation, for one: grokking never comes). Adam's
denominator shrinks with the gradients, so a rare sample that does have one may cause a very large update.

## How it is detected
`softmax_collapse` (fraction of rows whose sum of exponentials is exactly 1) and `zero_losses` (fraction of samples
whose loss is exactly 0) are both at least one half in three consecutive samples. Labels that are ignored do not count.
It is a warning while something is left to fit: the loss is above 5 % of the entropy of the targets, or of where it
started where that is not known. A network that has fitted its training set loses no more of it: *info*.

## What cures it
Train on StableMax, in which no term is absorbed; remove from the gradients the direction that only scales the logits
(OrthoGrad); weight decay or a penalty on the logits; float64 for the loss only postpones it. If the network only has to
fit its data, and does: stop.

```python
loss = F.cross_entropy(100 * logits, targets)  # bad: gaps of 17 come soon
loss = F.cross_entropy(logits, targets)  # better
loss = poise.losses.stablemax_cross_entropy(logits, targets)  # never zero
```

## References
- Prieto et al., *Grokking at the edge of numerical stability*, ICLR 2025, arXiv:2501.04697
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import align, confidence, evidence_at, first_run, number
from poise.doctor.events import loss_curve, loss_of_a_guess
from poise.report.finding import Evidence, Finding
from poise.store import Record

FRACTION = 0.5
SAMPLES = 3
UNFITTED = 0.05


def find(record: Record) -> list[Finding]:
    """Find samples whose loss is zero because rounding absorbed the other classes."""
    collapsed = record["softmax_collapse"]
    zero = align(record["zero_losses"], collapsed.steps)
    i = first_run((collapsed.values >= FRACTION) & (zero >= FRACTION), SAMPLES)
    if i is None:
        return []
    onset, detected = int(collapsed.steps[i - SAMPLES + 1]), int(collapsed.steps[i])
    fraction = float(np.median(zero[i - SAMPLES + 1 : i + 1]))
    return [
        CAUSE.finding(
            "warning" if _is_unfitted(record, detected) else "info",
            confidence(fraction, FRACTION),
            f"Since step {onset} the loss of {number(100 * fraction)} % of the samples is exactly zero: the softmax "
            "has absorbed the other classes, and nothing is learned from these samples.",
            onset=onset,
            detected=detected,
            evidence=[
                Evidence("zero_losses", fraction, FRACTION, None, detected),
                Evidence("softmax_collapse", float(collapsed.values[i]), FRACTION, None, detected),
                *evidence_at(record, "grad_norm", detected),
            ],
        )
    ]


def _is_unfitted(record: Record, step: int) -> bool:
    """Return whether the loss of a typical batch is not yet small at ``step``; true where no loss is known."""
    curve = loss_curve(record)
    i = int(np.searchsorted(curve.steps, step, side="right")) - 1
    if i < 0:
        return True
    # Logits that are large from the start begin far above a guess; a second-order method is far below it at once.
    guess = loss_of_a_guess(record)[i]
    return bool(curve.level[i] > UNFITTED * (guess if np.isfinite(guess) else abs(curve.start[i])))


CAUSE = Cause(
    id="softmax_collapse",
    title="The softmax has collapsed",
    find=find,
    exact=False,
    doc=__doc__,
    family="number formats",
    leads_to=("stale_second_moment",),
    remedies=("stablemax", "ortho_grad", "weight_decay", "z_loss"),
)
