"""The policy became deterministic too early.

## What it is
Within a few updates the policy went from trying actions to always taking the same one in each state.

## Why it hurts
An action of probability 1 has a log-probability whose gradient is zero, and other actions are never tried again: the
policy stays as it is, good or bad.

## How it is detected
In a run with a policy gradient, `policy_entropy` (the mean entropy over that of a uniform choice) fell from at least
0.3 to at most 0.02 within ten steps, and in the next three samples stayed below 0.05. A policy that learns gives up
its entropy over hundreds of updates.

## What cures it
A lower learning rate, a bonus for entropy (0.01 is usual), advantages that are normalised.

```python
loss = policy_loss + 0.5 * value_loss  # nothing keeps the policy from collapsing
loss = policy_loss + 0.5 * value_loss - 0.01 * entropy.mean()  # good
```

## References
- Williams and Peng, *Function optimization using connectionist reinforcement learning algorithms*, Connection Science
  1991
- Mnih et al., *Asynchronous methods for deep reinforcement learning*, ICML 2016, arXiv:1602.01783
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.acting import AFTER, DECIDED, UNDECIDED
from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import confidence, number
from poise.report.finding import Evidence, Finding
from poise.store import Record

STAYS, SAMPLES = 0.05, 3


def find(record: Record) -> list[Finding]:
    """Find a policy that became deterministic within a few updates."""
    known = record.events("policy_gradient")
    entropy = record["policy_entropy"]
    values, steps = np.asarray(entropy.values, dtype=float), np.asarray(entropy.steps)
    if not known:
        return []
    for i in np.flatnonzero(values <= DECIDED):
        before = np.flatnonzero((steps >= steps[i] - AFTER) & (steps < steps[i]) & (values >= UNDECIDED))
        after = values[i + 1 : i + 1 + SAMPLES]
        if not len(before) or len(after) < SAMPLES or not np.all(after < STAYS):
            continue
        first, now, detected = int(steps[before[-1]]), int(steps[i]), int(steps[i + SAMPLES])
        high, low = float(values[before[-1]]), float(values[i])
        return [
            CAUSE.finding(
                "error",
                confidence(DECIDED, max(low, 1e-4) / 2),
                f"Between steps {first} and {now} the policy became deterministic: its entropy fell from "
                f"{number(high)} to {number(low)} of that of a uniform choice, and stays there.",
                onset=first,
                detected=max(detected, known[0].step),
                event=now,
                evidence=[Evidence("policy_entropy", low, DECIDED, high, now)],
            )
        ]
    return []


CAUSE = Cause(
    id="policy_collapse",
    title="The policy became deterministic too early",
    find=find,
    exact=False,
    doc=__doc__,
    family="reinforcement learning",
    leads_to=("dead_units",),
    remedies=("lr_scale", "clip_grad_norm"),
)
