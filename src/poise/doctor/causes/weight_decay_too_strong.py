"""Weight decay is too strong.

## What it is
Weight decay takes more from the weights in every step than the gradient of the loss gives back: they shrink towards
zero.

## Why it hurts
A network of vanishing weights returns the same output for every input. The loss rests at its trivial value, that of a
guess, and the gradients, which pass through the weights, vanish as well. No learning rate helps.

## How it is detected
The median of `param_norm` over the weight matrices that are decayed has fallen below a fifth of what it was at first,
no more slowly than half of what decay alone explains (the sum of `lr * weight_decay` over the steps), and the loss is
at its trivial value (97 % of the entropy of the targets, else four fifths of its start).

## What cures it
A weight decay ten to a thousand times smaller; 1e-4 to 5e-4 is usual for SGD, 0.01 to 0.1 for AdamW.

```python
torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.5)  # bad
torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)  # good
```

## References
- Krogh and Hertz, *A simple weight decay can improve generalization*, NIPS 1991
- Loshchilov and Hutter, *Decoupled weight decay regularization*, ICLR 2019, arXiv:1711.05101
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import align, confidence, layer_table, matrices, number, value_at
from poise.doctor.events import find_events, following, loss_curve, trivial_loss
from poise.report.finding import Evidence, Finding
from poise.store import Record

SHRUNK = 0.2
EXPLAINED = 0.5


def find(record: Record) -> list[Finding]:
    """Find weights that decay has taken away, and with them what the model had learned."""
    decays = _decays(record)
    curve = loss_curve(record)
    layers = matrices({n: s for n, s in record.by_layer("param_norm").items() if decays.get(n, 0.0) > 0}, record)
    steps, norms = layer_table(layers)
    if len(steps) < 2 or not len(curve.steps):
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.array(
            [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in norms / norms[0]]
        )
    decay = float(np.median([decays[name] for name in layers]))
    expected = _shrinkage(record, steps, decay)
    at = np.maximum(np.searchsorted(curve.steps, steps, side="right") - 1, 0)
    idle = curve.level[at] >= trivial_loss(record)[at]
    explained = -np.log(np.maximum(share, 1e-30)) <= expected / EXPLAINED
    hits = np.flatnonzero((share < SHRUNK) & explained & idle)
    if not len(hits):
        return []
    i = int(hits[0])
    step, level = int(steps[i]), float(curve.level[at[i]])
    onset = int(steps[0])
    return [
        CAUSE.finding(
            "error",
            confidence(SHRUNK, float(share[i])),
            f"Weight decay of {number(decay)} at learning rate {number(value_at(record['lr'], step))} has shrunk the "
            f"weight matrices to {number(100 * float(share[i]))} % of their first norm by step {step}, and the loss is "
            f"{number(level)}, that of a guess.",
            where=list(layers),
            onset=onset,
            detected=step,
            event=following(find_events(record), onset),
            evidence=[
                Evidence("param_norm / first", float(share[i]), SHRUNK, 1.0, step),
                Evidence("weight_decay", decay, None, None, onset),
                Evidence("loss", level, None, float(curve.start[at[i]]), step),
            ],
        )
    ]


def _decays(record: Record) -> dict[str, float]:
    decays: dict[str, float] = {}
    for event in record.events("optimizer")[:1]:
        for group in event.payload.get("groups", []):
            decay = group.get("weight_decay")
            if isinstance(decay, int | float):
                # With momentum the steps of decay add up just as those of the gradient.
                slow = 1 - float(group["momentum"]) if isinstance(group.get("momentum"), int | float) else 1.0
                decays.update((name, float(decay) / max(slow, 1e-3)) for name in group.get("parameters", []))
    return decays


def _shrinkage(record: Record, steps: np.ndarray, decay: float) -> np.ndarray:
    """Return the sum of learning rate times decay up to each step: the logarithm of what decay alone takes."""
    lr = record["lr"]
    total = np.cumsum(np.nan_to_num(lr.values)) * decay
    return np.nan_to_num(align(type(lr)(lr.steps, total), steps))


CAUSE = Cause(
    id="weight_decay_too_strong",
    title="Weight decay is too strong",
    find=find,
    exact=False,
    doc=__doc__,
    family="optimizer",
    leads_to=("label_problem",),
    remedies=("weight_decay=0",),
)
