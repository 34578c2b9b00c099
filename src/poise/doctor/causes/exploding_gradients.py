"""Gradients explode.

## What it is
The gradient grows on its way back through depth or time, or all at once in the middle of a run: a product of many
factors above 1, as in a recurrent network whose recurrent matrix is too large.

## Why it hurts
One step along such a gradient moves the weights out of the region in which the gradient is valid.

## How it is detected
In three ways.
1. At the first sample, before anything was learned: `||g|| ||θ|| / loss`, the relative change of the loss per
   relative change of all weights, exceeds 3,000 (healthy networks: 1 to 300; it does not depend on the units of the
   loss). The loss is the first, or the median of the first five where the first is less than a tenth of that and so
   near 0 by chance (a difference of terms); where the loss does not measure progress this does not apply.
2. Over depth: the median gradient norm of the first third of the weight matrices is more than 1,000 times that of the
   last third, falling steadily (rank correlation below -0.7), in three consecutive samples.
3. In the run: the norm is ten times its median over the last 25 samples and three times what it was at the start, a
   loss spike or divergence begins within ten steps that is more than one hard batch (the loss stays up), and updates
   were small before (below 2 %; otherwise the learning rate is the cause).

If gradients are clipped, the first two are reported as *info* until the loss is affected.

## What cures it
Clip the norm of gradients; residual connections, normalisation, orthogonal initialisation of recurrent matrices.

```python
loss.backward()
optimizer.step()  # bad for recurrent networks
loss.backward()
nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()  # good
```

## References
- Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013, arXiv:1211.5063
- Hanin, *Which neural net architectures give rise to exploding and vanishing gradients?*, NeurIPS 2018,
  arXiv:1801.03744
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.depth import DepthProfile, depth_profiles
from poise.doctor.causes.reading import confidence, number, own_baseline, typical, update_ratio
from poise.doctor.events import (
    LossEvent,
    breakdowns,
    find_events,
    following,
    loss_is_no_measure,
    stayed_up,
    trailing_median,
)
from poise.report.finding import Evidence, Finding
from poise.store import Record

SENSITIVITY, DEPTH_RATIO, STEADY, JUMP, ABOVE_START = 3e3, 1e3, -0.7, 10.0, 3.0
HEALTHY_UPDATE, WITHIN = 0.02, 10
FIRST_LOSSES = 5


def find(record: Record) -> list[Finding]:
    """Find gradients that explode at the start, over depth, or in the middle of the run; the first of these."""
    found = [f for f in (_at_start(record), _over_depth(record), _in_run(record)) if f is not None]
    return [min(found, key=lambda f: (f.detected_step or 0, f.onset_step or 0))] if found else []


def _at_start(record: Record) -> Finding | None:
    norms, loss = record["grad_norm"], record["loss"]
    weights = [series for series in record.by_layer("param_norm").values() if len(series.steps)]
    if not len(norms.steps) or not len(loss.steps) or not weights or not math.isfinite(loss.values[0]):
        return None  # a gradient is large relative to a loss, and that of a NaN has no size
    step = int(norms.steps[0])
    first = max(step, int(loss.steps[0]), *(int(series.steps[0]) for series in weights))
    known = _first_losses_known(record)
    if first > step + 2 or known is None or loss_is_no_measure(record) <= known:
        return None
    size = math.sqrt(sum(float(series.values[0]) ** 2 for series in weights))
    sensitivity = float(norms.values[0]) * size / _scale_of_loss(record)
    if not math.isfinite(sensitivity) or sensitivity <= SENSITIVITY:
        return None
    first = max(first, known)
    at = f"{number(float(norms.values[0]))} at a loss of {number(float(loss.values[0]))}"
    text = f"Gradients explode from the start: their norm is {at}"
    evidence = Evidence("grad_norm * param_norm / loss", sensitivity, SENSITIVITY, None, step)
    return _finding(record, text, step, first, evidence, confidence(sensitivity, SENSITIVITY))


def _first_losses_known(record: Record) -> int | None:
    """Return the step of the last of the first five losses, or of the first that is not finite."""
    loss = record["loss"]
    for i, value in enumerate(loss.values[:FIRST_LOSSES], 1):
        if i == FIRST_LOSSES or not math.isfinite(value):
            return int(loss.steps[i - 1])
    return None


def _scale_of_loss(record: Record) -> float:
    """Return the scale of the first losses, or that of a uniform guess where it is lower: logits may have exploded."""
    classes = record["classes"].values
    losses = np.abs(record["loss"].values[:FIRST_LOSSES])
    losses = losses[np.isfinite(losses)]
    # Losses that blow up at once do not hide the gradient that did it: the first one counts unless it is the odd one.
    middle = float(np.median(losses)) if len(losses) else 0.0
    first = middle if not len(losses) or losses[0] < 0.1 * middle else float(losses[0])
    return max(min(first, math.log(classes[0])) if len(classes) and classes[0] > 1 else first, 1e-12)


def _over_depth(record: Record) -> Finding | None:
    found = [finding for profile in depth_profiles(record) if (finding := _over_chain(record, profile)) is not None]
    return min(found, key=lambda finding: finding.detected_step or 0, default=None)


def _over_chain(record: Record, profile: DepthProfile) -> Finding | None:
    index = profile.first((profile.ratio > DEPTH_RATIO) & (profile.slope < STEADY))
    if index is None:
        return None
    onset, detected, ratio = int(profile.steps[index - 2]), int(profile.steps[index]), float(profile.ratio[index])
    first, last = profile.names[0], profile.names[-1]
    text = f"The gradient grows on its way back: {first} gets {number(ratio)} times what {last} gets"
    evidence = Evidence("grad_norm first/last", ratio, DEPTH_RATIO, None, detected)
    return _finding(record, text, onset, detected, evidence, confidence(ratio, DEPTH_RATIO), first)


def _in_run(record: Record) -> Finding | None:
    norms = record["grad_norm"]
    values = np.where(np.isfinite(norms.values), norms.values, 0.0)
    if len(values) < 10:
        return None
    before = np.concatenate([[np.inf], trailing_median(values, 25)[:-1]])
    start = np.nan_to_num(own_baseline(values), nan=np.inf)
    jumped = (values > JUMP * before) & (values > ABOVE_START * start) & (np.arange(len(values)) >= 10)
    events = breakdowns(find_events(record))
    known = [(*harm, int(i)) for i in np.flatnonzero(jumped) if (harm := _harm(record, events, int(norms.steps[i])))]
    if not known:
        return None
    detected, _, i = min(known, key=lambda found: (found[0], found[2]))
    step = int(norms.steps[i])
    text = f"The gradient norm jumped from {number(float(before[i]))} to {number(float(values[i]))} at step {step}"
    evidence = Evidence("grad_norm", float(values[i]), JUMP * float(before[i]), float(before[i]), step)
    return _finding(record, text, step, detected, evidence, confidence(float(values[i]), JUMP * float(before[i])))


def _harm(record: Record, events: list[LossEvent], step: int) -> tuple[int, LossEvent] | None:
    if typical(update_ratio(record), step - 1) > HEALTHY_UPDATE:
        return None
    known = []
    for event in events:
        if step <= event.step <= step + WITHIN:
            stays = stayed_up(record, event)
            if stays is not None and stays[0]:
                known.append((max(step, event.detected_step, stays[1]), event))
    return min(known, key=lambda pair: pair[0], default=None)


def _finding(
    record: Record, text: str, onset: int, detected: int, evidence: Evidence, probability: float, layer: str = ""
) -> Finding:
    event = following(breakdowns(find_events(record)), onset)
    clipped = len(record["clip_max"].steps) > 0
    return CAUSE.finding(
        "info" if clipped else "warning",
        probability,
        f"{text}.",
        where=[layer] if layer else [],
        onset=onset,
        detected=detected,
        event=event,
        severity_with_event="error",
        evidence=[evidence],
    )


CAUSE = Cause(
    id="exploding_gradients",
    title="Gradients explode",
    find=find,
    exact=False,
    doc=__doc__,
    family="gradients",
    leads_to=("lr_above_curvature",),
    remedies=("clip_grad_norm", "lr_scale", "warmup"),
)
