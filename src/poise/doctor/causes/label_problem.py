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
- Nothing to learn: the inputs do not tell the targets, and the model has not learned them. Of 400 distinct examples, a
  kernel regression on one half predicts the other no better than chance (`target_relation` below 3 standard
  deviations), so that it is the data and not the model; and for 100 steps and at least half of the run the loss has
  stayed within 10 % (or its own noise) of that of a guess that ignores the inputs (the entropy of labels, the variance
  of numbers), although updates are above 3e-4.

## What cures it
Check that inputs and targets are shuffled together, that classes count from 0, and what `ignore_index` catches.

```python
x, y = x[randperm(n)], y[randperm(n)]  # bad: two different permutations
order = randperm(n)
x, y = x[order], y[order]  # good
```

## References
- Gretton et al., *Kernel methods for measuring independence*, JMLR 2005
- Zhang et al., *Understanding deep learning requires rethinking generalization*, ICLR 2017, arXiv:1611.03530
- Northcutt, Athalye and Mueller, *Pervasive label errors in test sets destabilize machine learning benchmarks*,
  NeurIPS 2021, arXiv:2103.14749
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import EXACT, align, confidence, first_run, number, update_ratio, value_at
from poise.doctor.events import find_events, following, loss_curve, loss_of_a_guess, trailing_median
from poise.report.finding import Evidence, Finding
from poise.store import Record, Series

IGNORED, HEALTHY_UPDATE = 0.95, 3e-4
NEAR = 0.1
RELATED, MEASURED = 3.0, 2
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
    relation, updates, curve = record["target_relation"], update_ratio(record), loss_curve(record)
    if len(relation.steps) < MEASURED or not relation.values[-1] < RELATED or not len(updates.steps):
        return None
    guess = loss_of_a_guess(record)
    level = trailing_median(curve.values, 25)
    # A median of 25 losses is uncertain by a quarter of their noise.
    near = np.abs(level - guess) <= np.maximum(NEAR, 0.75 * curve.relative_noise) * guess
    run = _run_lengths(near)
    u = align(Series(updates.steps, trailing_median(np.nan_to_num(updates.values), 5)), curve.steps)
    long_enough = run >= np.maximum(STEPS, np.arange(len(run)) // 2)
    stuck = long_enough & (u > HEALTHY_UPDATE) & (curve.steps >= relation.steps[-1])
    if not stuck.any():
        return None
    i = int(np.argmax(stuck))
    onset, step = int(curve.steps[i - run[i] + 1]), int(curve.steps[i])
    return CAUSE.finding(
        "error",
        confidence(RELATED, max(float(relation.values[-1]), 0.6 * RELATED)),
        f"For {int(run[i])} steps the loss has been {number(float(level[i]))}, and a guess that ignores the inputs "
        f"would lose {number(float(guess[i]))}; from 400 examples another method could not predict the targets "
        "either. The targets do not belong to their inputs.",
        onset=onset,
        detected=step,
        event=onset,
        evidence=[
            Evidence("target_relation", float(relation.values[-1]), RELATED, None, int(relation.steps[-1])),
            Evidence("loss", float(level[i]), (1 + NEAR) * float(guess[i]), float(guess[i]), step),
            Evidence("update_ratio", value_at(updates, step), HEALTHY_UPDATE, None, step),
        ],
    )


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
