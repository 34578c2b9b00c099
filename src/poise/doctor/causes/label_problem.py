"""The targets do not belong to the inputs.

## What it is
The targets do not belong to the inputs: random, shuffled, shifted by one, or nearly all ignored.

## Why it hurts
There is nothing to learn, or what was learned is unlearned. No setting of the optimizer helps.

## How it is detected
- More than 95 % of the targets are ignored in three consecutive samples.
- Targets were permuted in the middle of the run: the accuracy (`label_agreement`) fell below half of its best (of at
  least 0.5), while predictions still determine the target (`label_purity` above 0.5 and at least 0.2 above the
  accuracy). Weights that broke would lose both.
- Nothing to learn: for 100 steps and at least half of the run the loss has stayed within 3 % of the entropy of the
  targets, which is the loss of a guess by frequency; accuracy is that of a guess, although updates are of healthy size
  (between 3e-4 and 0.02) and the learning rate is steady, and no other cause accounts for it (dead units, vanishing
  gradients, ...).

## What cures it
Check that inputs and targets are shuffled together, that classes count from 0, and what `ignore_index` catches.

```python
x, y = x[randperm(n)], y[randperm(n)]  # bad: two different permutations
order = randperm(n)
x, y = x[order], y[order]  # good
```

## References
- Zhang et al., *Understanding deep learning requires rethinking generalization*, ICLR 2017, arXiv:1611.03530
- Northcutt, Athalye and Mueller, *Pervasive label errors in test sets destabilize machine learning benchmarks*,
  NeurIPS 2021, arXiv:2103.14749
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes import (
    attention_logit_growth,
    dead_units,
    double_softmax,
    missing_zero_grad,
    vanishing_gradients,
)
from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, align, confidence, first_run, number, update_ratio, value_at
from poise.doctor.events import LossCurve, find_events, following, loss_curve, trailing_median
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

IGNORED, NEAR_ENTROPY, HEALTHY_UPDATE, LARGE_UPDATE = 0.95, 0.03, 3e-4, 0.02
# With these causes a model guesses too, and its targets are correct.
BETTER_REASONS = (attention_logit_growth, dead_units, double_softmax, missing_zero_grad, vanishing_gradients)
GAP = 0.2
STEPS = 100


def find(record: Record) -> list[Finding]:
    """Find targets that do not belong to their inputs; one finding per way of being wrong."""
    found = (_ignored(record), _renamed(record), _nothing_to_learn(record))
    return [finding for finding in found if finding is not None]


def _ignored(record: Record) -> Finding | None:
    series = record["label_ignored"]
    index = first_run(np.asarray(series.values) > IGNORED, 3)
    if index is None:
        return None
    onset, step, fraction = int(series.steps[index - 2]), int(series.steps[index]), float(series.values[index])
    return CAUSE.finding(
        "error" if fraction >= 1 else "warning",
        EXACT,
        f"{number(100 * fraction)} % of the targets are ignored since step {onset}: hardly any are left to learn from.",
        onset=onset,
        detected=step,
        evidence=[Evidence("label_ignored", fraction, IGNORED, None, step)],
    )


def _renamed(record: Record) -> Finding | None:
    accuracy = record["label_agreement"]
    if not len(accuracy.steps):
        return None
    right = np.nan_to_num(accuracy.values)
    purity = np.nan_to_num(align(record["label_purity"], accuracy.steps))
    best = np.maximum.accumulate(right)
    fell = (best >= 0.5) & (right < 0.5 * best) & (purity > 0.5) & (purity - right > GAP)
    index = first_run(fell, 2)
    if index is None:
        return None
    high = np.flatnonzero(right[: index + 1] >= 0.8 * best[index])[-1]
    low, step = int(accuracy.steps[min(high + 1, index)]), int(accuracy.steps[index])
    # Accuracy is only sampled; the loss is known at every step and shows when it happened.
    known = [e.step for e in find_events(record) if accuracy.steps[high] < e.step <= low and e.detected_step <= step]
    onset = min([low, *known])
    event = following(find_events(record), onset)
    return CAUSE.finding(
        "error",
        confidence(float(purity[index] - right[index]), 0.75 * GAP),
        f"The targets changed their meaning at step {onset}: accuracy fell from {number(float(best[index]))} to "
        f"{number(float(right[index]))}, but predictions still determine the target.",
        onset=onset,
        detected=step,
        event=event,
        evidence=[
            Evidence("label_agreement", float(right[index]), 0.5 * float(best[index]), float(best[index]), step),
            Evidence("label_purity", float(purity[index]), float(right[index]) + GAP, None, step),
        ],
    )


def _nothing_to_learn(record: Record) -> Finding | None:
    entropy, updates, curve = record["label_entropy"], update_ratio(record), loss_curve(record)
    if not len(entropy.steps) or not len(updates.steps) or len(curve.steps) < STEPS:
        return None
    floor = _typical_entropy(entropy, curve)
    level = trailing_median(curve.values, 25)
    classes = align(record["classes"], curve.steps)
    # Estimated from small batches, the entropy may still be low; that of uniform labels is a bound.
    uniform = np.minimum(1.02 * np.log(np.fmax(np.nan_to_num(classes), 1.0)), 1.15 * floor)
    near = (level >= (1 - NEAR_ENTROPY) * floor) & (level <= np.maximum((1 + NEAR_ENTROPY) * floor, uniform))
    near[: min(25, len(near))] &= np.abs(curve.values[:25] - floor[:25]) <= 0.2 * floor[:25]
    run = _run_lengths(near)
    guess = _guesses(record["label_agreement"], curve, floor, run)
    u = align(Series(updates.steps, trailing_median(np.nan_to_num(updates.values), 5)), curve.steps)
    moving = (u > HEALTHY_UPDATE) & (u < LARGE_UPDATE)
    lr = align(record["lr"], curve.steps)
    steady = ~(lr < 0.5 * np.fmax.accumulate(lr))
    stuck = (run >= np.maximum(STEPS, np.arange(len(run)) // 2)) & guess & moving & steady & (floor > 0.1)
    if not stuck.any():
        return None
    i = int(np.argmax(stuck))
    if any(other.find(record.until(int(curve.steps[i]))) for other in BETTER_REASONS):
        return None
    onset, step = int(curve.steps[i - run[i] + 1]), int(curve.steps[i])
    return CAUSE.finding(
        "warning",
        confidence(float(run[i]), STEPS),
        f"For {int(run[i])} steps the loss has been {number(float(level[i]))}, and the entropy of the targets is "
        f"{number(float(floor[i]))}: the model guesses by frequency although its weights move. "
        "Do the targets belong to their inputs?",
        onset=onset,
        detected=step,
        event=onset,
        evidence=[
            Evidence("loss", float(level[i]), (1 + NEAR_ENTROPY) * float(floor[i]), float(floor[i]), step),
            Evidence("update_ratio", value_at(updates, step), HEALTHY_UPDATE, None, step),
        ],
    )


def _guesses(accuracy: Series, curve: LossCurve, floor: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Return where accuracy, sampled at least twice since the loss became flat, is that of a guess."""
    samples = np.searchsorted(accuracy.steps, curve.steps, side="right")
    since = np.searchsorted(accuracy.steps, curve.steps[np.arange(len(run)) - np.maximum(run, 1) + 1])
    return (samples - since >= 2) & (align(accuracy, curve.steps) <= 1.5 * np.exp(-floor) + 0.05)


def _typical_entropy(entropy: Series, curve: LossCurve) -> np.ndarray:
    # One small batch says little: the median of the last samples does.
    finite = np.where(np.isfinite(entropy.values), entropy.values, 0.0)
    return align(Series(entropy.steps, trailing_median(finite, 25)), curve.steps)


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    out = np.zeros(len(mask), dtype=int)
    for i in np.flatnonzero(mask):
        out[i] = out[i - 1] + 1 if i else 1
    return out


CAUSE = Cause(
    id="label_problem",
    title="The targets do not belong to the inputs",
    find=find,
    exact=False,
    doc=__doc__,
    family="data",
    leads_to=("bad_batch",),
)
