"""The learning rate is too high.

## What it is
Every update changes the weights by so much that the next gradient no longer describes where they are: the learning
rate is above what the curvature of the loss permits.

## Why it hurts
The loss rises instead of falling, oscillates, or runs off to infinity; units die; what was learned is lost.

## How it is detected
From the loss, the gradients and the updates together, because each alone misleads (losses of competing networks rise in
health, Adam's first updates are large in health). The loss diverges (see below), and around that time the relative
update `||Δθ|| / ||θ||` of the whole model, over three samples, is above 2 % (healthy: about 0.1 %); 0.5 % suffice where
the loss is ten times its start, or turned NaN after it had doubled. A NaN out of a calm loss needs updates of half the
weights: it mostly has another cause. Updates of weights that are not finite say nothing. Or the loss has stalled within
10 % of its start, and above the entropy of the targets where that is known, while updates are above 5 %, or were before
gradients fell to a hundredth, or replaced half of the weights in the first steps. Updates above 10 % in every sample
before that mark the step at which it began. Or the loss has been a fifth above the entropy of the targets for 40 steps,
and no update sampled meanwhile was small. Where no updates were recorded, gradients ten times larger than at the start
stand in for them. More specific causes (attention logits, a jump of the schedule, gradients that were never reset, ...)
explain this one away.

A loss diverges when it is not finite, gives back half of what was learned, or doubles before anything was.

## What cures it
A learning rate three to ten times lower, a longer warm-up, or gradient clipping.

```python
torch.optim.SGD(model.parameters(), lr=10.0)  # bad
torch.optim.SGD(model.parameters(), lr=0.1)  # good
```

## References
- LeCun et al., *Automatic learning rate maximization by on-line estimation of the Hessian's eigenvectors*, NIPS 1992
- Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, ICLR 2021,
  arXiv:2103.00065
- Gilmer et al., *A loss curvature perspective on training instability in deep learning*, ICLR 2022, arXiv:2110.04369
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.acting import harm_of_an_update
from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import (
    FAR,
    confidence,
    first_run,
    number,
    own_baseline,
    typical,
    update_ratio,
    value_at,
    weights_replaced_since,
)
from poise.doctor.events import LossEvent, find_events, loss_curve, loss_is_no_measure, loss_of_a_guess
from poise.report.finding import Evidence, Finding
from poise.store import Record

LARGE_UPDATE = 0.02
STUCK_UPDATE = 0.05
GRADIENT_GROWTH = 10.0
REPLACED = 0.5
ABOVE_GUESS = 1.02
WORSE, LONG = 1.2, 40
SINCE = 20  # steps before and after an event in which updates count
DEAD = 0.01
HEALTHY_UPDATE = 0.01  # of a small network in its first steps
MANY = 5  # samples in a row that replaced a good part of the weights
ZERO = 1e3  # an update this much larger than the weights says that they began at zero
MEASURED = 3  # measurements of the curvature that can acquit a rate


def find(record: Record) -> list[Finding]:
    """Find a loss that breaks down under updates that are too large."""
    updates = update_ratio(record)
    judge = _large_updates if len(updates.steps) else _large_gradients
    known = [
        (max(evidence.step or 0, event.detected_step), event, evidence)
        for event in find_events(record)
        for evidence in judge(record, event)
        if not _curvature_denies(record, event, evidence)
    ]
    known += [found for found in _worse_than_a_guess(record) if not _curvature_denies(record, *found[1:])]
    known += _broke_an_agent(record)
    if not known:
        return []
    detected, event, evidence = min(known, key=lambda found: found[0])
    return [_finding(record, event, evidence, detected)]


def _large_updates(record: Record, event: LossEvent) -> list[Evidence]:
    """Return the updates around an event if they are too large, at the first step at which that is known."""
    replaced = _replaced_at_first(record, event) if event.kind == "stall" else []
    threshold = _threshold(record, event)
    if threshold is None:
        return replaced
    updates = update_ratio(record)
    # The first steps may have killed the units of a network that stalls; the update of a step whose loss is NaN is NaN
    # itself.
    first = event.step - (SINCE if event.kind == "divergence" else 10 * SINCE)
    last = event.detected_step + SINCE if math.isfinite(event.value) else event.step - 1
    finite = np.isfinite(updates.values)
    near = np.flatnonzero((updates.steps >= first) & (updates.steps <= last) & finite)
    fewest = 3 if event.kind == "stall" else 1
    for count, i in enumerate(near, 1):
        u = _sustained(np.asarray(updates.values)[near[max(count - 3, 0) : count]])
        early = event.kind == "stall" and updates.steps[i] < event.step + SINCE
        if early and u < REPLACED and not _gradients_died(record, event):
            continue
        if u >= threshold and count >= fewest:
            return [Evidence("update_ratio", u, threshold, None, int(updates.steps[i]))]
    return replaced


def _broke_an_agent(record: Record) -> list[tuple[int, LossEvent, Evidence]]:
    """Return the update that broke a model that acts, where the loss measures nothing."""
    harm = harm_of_an_update(record)
    if harm is None:
        return []
    event = LossEvent("divergence", harm.step, harm.known, math.nan, math.nan, happened=harm.what)
    return [(harm.known, event, Evidence("update_ratio", harm.update, STUCK_UPDATE, None, harm.step))]


def _curvature_denies(record: Record, event: LossEvent, evidence: Evidence) -> bool:
    """Return whether the curvature was below the edge in all measurements until an event was known.

    One of them at least must be from before it began: weights that are broken lie in flat regions. An update that
    replaced half of the weights, or gradients that grew, need no curvature to be too large.
    """
    ratio = record["edge_ratio"]
    values = np.asarray(ratio.values, dtype=float)[ratio.steps <= event.detected_step]
    if len(values) < MEASURED or ratio.steps[0] > event.step:
        return False
    is_plain = evidence.signal == "grad_norm" or (evidence.signal == "update_ratio" and evidence.value >= REPLACED)
    return not is_plain and bool(np.all(values < 1))


def _replaced_at_first(record: Record, event: LossEvent) -> list[Evidence]:
    """Return the first updates if five in a row replaced a good part of the weights before a loss stalled."""
    updates = update_ratio(record)
    values = np.asarray(updates.values, dtype=float)
    early = updates.steps < event.step + 2 * SINCE
    end = first_run(early & (values >= FAR) & (values < ZERO), MANY)
    if end is None or not values[0] < ZERO:
        return []
    u = float(np.median(values[end - MANY + 1 : end + 1]))
    return [Evidence("update_ratio", u, FAR, None, int(updates.steps[end]))]


def _gradients_died(record: Record, event: LossEvent) -> bool:
    """Return whether gradients at a stall are next to nothing: a net that its first steps have killed."""
    norms = record["grad_norm"]
    before = norms.values[norms.steps <= event.step + SINCE]
    return typical(norms, event.detected_step) < DEAD * float(np.nanmax(before, initial=0.0))


def _sustained(values: np.ndarray) -> float:
    # The median of three or the smaller of two, so that one large update among small ones does not count.
    return float(np.sort(values)[(len(values) - 1) // 2])


def _worse_than_a_guess(record: Record) -> list[tuple[int, LossEvent, Evidence]]:
    """Return the loss where for 40 steps it has been far above the entropy of the targets, if no update denies it.

    A classifier that has nothing to learn guesses by frequency; one that does worse in training is thrown about.
    """
    curve, guess = loss_curve(record), loss_of_a_guess(record)
    end = first_run((curve.level > WORSE * guess) & (curve.start < WORSE * guess), LONG)
    if end is None or curve.steps[end] >= loss_is_no_measure(record):
        return []
    began, now = int(curve.steps[end - LONG + 1]), int(curve.steps[end])
    updates = update_ratio(record)
    near = updates.values[(updates.steps >= began) & (updates.steps <= now)]
    if len(near) and not np.median(near) >= LARGE_UPDATE:
        return []
    level, limit = float(curve.level[end]), float(WORSE * guess[end])
    event = LossEvent("divergence", began, now, level, float(curve.start[end]))
    return [(now, event, Evidence("loss", level, limit, limit / WORSE, now))]


def _large_gradients(record: Record, event: LossEvent) -> list[Evidence]:
    """Return the gradients around a divergence if they have grown, at the first step at which that is known."""
    norms = record["grad_norm"]
    if event.kind != "divergence" or len(norms.steps) < 3:
        return []
    values = np.where(np.isfinite(norms.values), norms.values, math.inf)
    early = own_baseline(values)
    for i in np.flatnonzero((norms.steps >= event.step) & (norms.steps <= event.detected_step + SINCE)):
        now, limit = _sustained(values[max(i - 2, 0) : i + 1]), GRADIENT_GROWTH * float(early[i])
        if now >= limit:
            return [Evidence("grad_norm", now, limit, float(early[i]), int(norms.steps[i]))]
    return []


def _threshold(record: Record, event: LossEvent) -> float | None:
    """Return how large updates must be to cause an event; ``None`` if they cannot be."""
    if event.kind == "spike":
        return None
    if event.kind == "stall":
        return STUCK_UPDATE if _never_learned(record, event) and not _guesses(record, event) else None
    curve = loss_curve(record)
    at = int(np.searchsorted(curve.steps, event.step, side="right")) - 1
    start = float(curve.start[at]) if at >= 0 else math.inf
    if not math.isfinite(event.value):
        # A NaN out of a calm loss has other causes, unless each update replaced half of the weights.
        return LARGE_UPDATE / 4 if event.level > start + abs(start) else REPLACED
    return LARGE_UPDATE / 4 if event.value > start + 9 * abs(start) else LARGE_UPDATE


def _guesses(record: Record, event: LossEvent) -> bool:
    """Return whether the loss is that of a guess by frequency: weights that are thrown about do worse."""
    curve = loss_curve(record)
    at = int(np.searchsorted(curve.steps, event.detected_step, side="right")) - 1
    return event.value < ABOVE_GUESS * float(loss_of_a_guess(record)[at])


def _never_learned(record: Record, event: LossEvent) -> bool:
    curve = loss_curve(record)
    at = int(np.searchsorted(curve.steps, event.detected_step, side="right")) - 1
    return at >= 0 and bool(curve.best[at] > 0.9 * curve.start[at] > 0)


def _finding(record: Record, event: LossEvent, evidence: Evidence, detected: int) -> Finding:
    threshold = evidence.threshold or 1.0
    lr = value_at(record["lr"], evidence.step or event.step)
    at_rate = f" at learning rate {number(lr)}" if math.isfinite(lr) else ""
    if evidence.signal == "loss":
        how = (
            f"For {LONG} steps the loss has been far above that of a guess ({number(evidence.baseline or 0.0)}, the "
            f"entropy of the targets){at_rate}: the weights are thrown about"
        )
    elif evidence.signal == "update_ratio":
        how = f"Each update changed the weights by {number(100 * evidence.value)} %{at_rate} (healthy: about 0.1 %)"
    else:
        how = f"Gradients grew from {number(evidence.baseline or 0.0)} to {number(evidence.value)}{at_rate}"
    return CAUSE.finding(
        "error",
        confidence(evidence.value, threshold),
        f"{how}.",
        onset=weights_replaced_since(record, event.step),
        detected=detected,
        event=event,
        remedies=(_rate(evidence), *CAUSE.remedies[1:]),
        evidence=[
            evidence,
            *(
                []
                if evidence.signal == "loss" or event.happened
                else [Evidence("loss", event.value, None, event.level, event.step)]
            ),
            *([Evidence("lr", lr, None, None, evidence.step or event.step)] if math.isfinite(lr) else []),
        ],
    )


def _rate(evidence: Evidence) -> str:
    """Return the change of the rate that would bring updates back to a healthy size, if that is less than usual."""
    factor = HEALTHY_UPDATE / evidence.value if evidence.signal == "update_ratio" and evidence.value > 0 else 1.0
    return f"lr_scale={max(factor, 1e-4):.1g}" if factor < 0.3 else "lr_scale"


CAUSE = Cause(
    id="lr_too_high",
    title="The learning rate is too high",
    find=find,
    exact=False,
    doc=__doc__,
    family="learning rate",
    leads_to=("output_logit_divergence", "policy_collapse"),
    remedies=("lr_scale", "warmup", "clip_grad_norm", "clip_update_rms"),
)
