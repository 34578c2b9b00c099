"""Weight decay is too strong.

## What it is
Weight decay takes more from the weights in every step than the gradient of the loss gives back: they shrink towards
zero.

## Why it hurts
A network of vanishing weights returns the same output for every input. The loss rests at its trivial value, that of a
guess, and the gradients, which pass through the weights, vanish as well. No learning rate helps.

## How it is detected
The loss is at its trivial value (97 % of the entropy of the targets, else four fifths of its start) after 100 steps,
and the decay outweighs the gradient. Where the optimizer adds it to the gradient: in the first sample `weight_decay *
||weight||` is more than twice the norm of the gradient, for the median of the weight matrices. Where it is decoupled
(AdamW): `lr * weight_decay` has been above 0.01 a step in the mean, so that weights are forgotten within a hundred
steps (usual: ten thousand), with a decay above the usual 0.1. Not if the weights, measured later, still have half of
their first norm.

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
from poise.doctor.causes.reading import Mask, align, confidence, matrices, number, optimizer_class, value_at
from poise.doctor.events import find_events, following, loss_curve, trivial_loss
from poise.report.finding import Evidence, Finding
from poise.store import Record

OUTWEIGHS, FORGETS = 2.0, 0.01
USUAL = 0.1  # of AdamW, at most
STEPS, SHRUNK = 100, 0.5
WORSE = 1.3  # a loss above that is no longer one of weights that vanish


def find(record: Record) -> list[Finding]:
    """Find weight decay that outweighs the gradient while nothing is learned."""
    curve, decays = loss_curve(record), _decays(record)
    layers = matrices({n: s for n, s in record.by_layer("param_norm").items() if decays.get(n, 0.0) > 0}, record)
    guess = trivial_loss(record)
    idle = (np.arange(len(curve.steps)) >= STEPS) & (curve.level > guess) & (curve.level < WORSE * guess)
    outweighs = _forgets if _is_decoupled(record) else _outweighs
    idle, evidence = outweighs(record, decays, list(layers), idle) if layers else (idle, None)
    if evidence is None or not idle.any():
        return []
    i = int(np.argmax(idle))
    step, level, onset = int(curve.steps[i]), float(curve.level[i]), evidence.step or 0
    left = float(np.median([value_at(s, step) / s.values[0] for s in layers.values()]))
    last = max(int(s.steps[np.searchsorted(s.steps, step, side="right") - 1]) for s in layers.values())
    if last >= STEPS // 2 and not left < SHRUNK:
        return []
    decay = float(np.median([decays[name] for name in layers]))
    shrunk = f", the weights have {number(100 * left)} % of their first norm" if last > onset and left < SHRUNK else ""
    return [
        CAUSE.finding(
            "error",
            confidence(evidence.value, evidence.threshold or 1.0),
            f"Weight decay of {number(decay)} outweighs the gradient ({_how(evidence)}): after {step} steps the loss "
            f"is {number(level)}, that of a guess{shrunk}.",
            where=list(layers),
            onset=onset,
            detected=step,
            event=following(find_events(record), onset),
            evidence=[
                evidence,
                Evidence("weight_decay", decay, None, None, onset),
                Evidence("loss", level, None, float(curve.start[i]), step),
            ],
        )
    ]


def _is_decoupled(record: Record) -> bool:
    return optimizer_class(record).endswith("AdamW") or "SGDW" in optimizer_class(record)


def _forgets(record: Record, decays: dict[str, float], names: list[str], idle: Mask) -> tuple[Mask, Evidence | None]:
    """Return which of the idle steps come after so much decay that it has forgotten the weights, and how much it was.

    It is the mean over all steps so far: a schedule may begin near 0.
    """
    lr, steps = record["lr"], loss_curve(record).steps
    if not len(lr.steps) or not idle.any():
        return idle, None
    first = int(lr.steps[0])
    sums = np.cumsum(align(lr, np.arange(first, max(int(steps[-1]), first) + 1)))
    so_far = np.maximum(steps - first, 0)
    decay = float(np.median([decays[name] for name in names]))
    rates = sums[so_far] / (so_far + 1) * decay
    idle = idle & (rates > FORGETS) & (decay > USUAL)  # else it is the learning rate that is too high
    return idle, Evidence("lr * weight_decay", float(rates[np.argmax(idle)]), FORGETS, None, first)


def _outweighs(record: Record, decays: dict[str, float], names: list[str], idle: Mask) -> tuple[Mask, Evidence | None]:
    """Return the idle steps, and how much larger the decay was than the gradient at the start if it was much larger."""
    ratios = []
    for name in names:
        weight, gradient = record[f"param_norm[{name}]"], record[f"grad_norm[{name}]"]
        if len(gradient.steps) and gradient.steps[0] == weight.steps[0] and gradient.values[0] > 0:
            ratios.append(decays[name] * float(weight.values[0]) / float(gradient.values[0]))
    ratio = float(np.median(ratios)) if ratios else 0.0
    step = int(record[f"param_norm[{names[0]}]"].steps[0])
    if not (np.isfinite(ratio) and ratio > OUTWEIGHS):
        return idle, None
    return idle, Evidence("weight_decay * param_norm / grad_norm", ratio, OUTWEIGHS, None, step)


def _how(evidence: Evidence) -> str:
    if evidence.signal == "lr * weight_decay":
        return f"each step takes {number(100 * evidence.value)} % of the weights"
    return f"{number(evidence.value)} times as much at the start"


def _decays(record: Record) -> dict[str, float]:
    """Return the weight decay of each parameter."""
    decays: dict[str, float] = {}
    for event in (event for event in record.events("optimizer") if event.step == 0):
        for group in event.payload.get("groups", []):
            decay = group.get("weight_decay")
            if isinstance(decay, int | float):
                decays.update(dict.fromkeys(group.get("parameters", []), float(decay)))
    return decays


CAUSE = Cause(
    id="weight_decay_too_strong",
    title="Weight decay is too strong",
    find=find,
    exact=False,
    doc=__doc__,
    family="optimizer",
    leads_to=("norm_gain_collapse",),
    remedies=("weight_decay=0",),
)
