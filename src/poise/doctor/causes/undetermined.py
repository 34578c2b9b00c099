"""The run failed, and none of the known causes accounts for it.

## What it is
The loss is not finite, ran away, gave back what was learned, or rests at its trivial value, but the record shows the
pattern of none of the causes that poise knows.

## Why it hurts
The run is lost all the same. What is missing is a measurement that tells its likeliest causes apart.

## How it is detected
At the end of the script, where nothing else worse than *info* was found: the last loss is not finite; the median of the
last five is above a thousand times the largest of the first five in magnitude, and rose over the last third of the run
no more slowly than before; or the loss diverged, and its last median is above where it started and not on its way down;
or it stalled at its trivial value and is still there: above 97 % of the entropy of the targets, or where that is not
known above 95 % of its first median, with a noise that would let a fall be seen. Where several optimizers train, or the
loss does not measure progress, only a loss that is not finite counts.

## What cures it
Run the command that the finding names; it decides between the two likeliest causes.

```bash
poise run --overhead 1 train.py  # samples every step, measures the curvature
poise trial --remedy lr_scale=0.1 train.py  # does a tenth of the learning rate cure it?
```

## References
- Chowdhery et al., *PaLM: scaling language modeling with Pathways*, JMLR 2023, arXiv:2204.02311 (spikes whose cause was
  never found)
"""

from __future__ import annotations

import math

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import number, typical, update_ratio
from poise.doctor.events import (
    find_events,
    loss_curve,
    loss_is_no_measure,
    loss_of_a_guess,
    trailing_median,
    trivial_loss,
)
from poise.report.finding import Evidence, Finding
from poise.store import Record

FAR = 1e3
UNCHANGED, NOISY, AT_GUESS = 0.95, 0.5, 1.02
HEALTHY_UPDATE, LARGE_UPDATE = 3e-4, 0.02


def find(record: Record) -> list[Finding]:
    """Find a run that ended badly."""
    ends = record.events("script_end")
    if not ends or not len(record["loss"].steps):
        return []
    seen = _not_finite(record) or _ran_away(record) or _diverged(record) or _stalled(record)
    if seen is None:
        return []
    what, onset, causes, command = seen
    last = record["loss"]
    detected = max(ends[-1].step, int(last.steps[-1]), onset)
    u = typical(update_ratio(record), detected)
    return [
        CAUSE.finding(
            "warning",
            0.95 if not math.isfinite(last.values[-1]) else 0.5,
            f"{what[0].upper()}{what[1:]}, and none of the known causes was recognised. Likeliest: {causes[0]}, or "
            f"{causes[1]}. To decide: {command}.",
            onset=onset,
            detected=detected,
            event=onset,
            evidence=[
                Evidence("loss", float(last.values[-1]), None, float(last.values[0]), int(last.steps[-1])),
                *([Evidence("update_ratio", u, None, None, detected)] if math.isfinite(u) else []),
            ],
        )
    ]


Seen = tuple[str, int, tuple[str, str], str]  # what, since when, the likeliest causes, what decides between them

_BY_RATE = "`poise trial --remedy lr_scale=0.1` (a smaller rate cures the first only)"


def _not_finite(record: Record) -> Seen | None:
    loss = record["loss"]
    bad = np.flatnonzero(~np.isfinite(loss.values))
    if not len(bad) or math.isfinite(loss.values[-1]):
        return None
    step = int(loss.steps[bad[0]])
    causes = (
        "an operation outside its domain (log, sqrt, division, mean of nothing)",
        "a learning rate that is too high",
    )
    return f"the loss is not finite from step {step} on", step, causes, _BY_RATE


def _ran_away(record: Record) -> Seen | None:
    curve = loss_curve(record)
    if not _is_judged(record) or len(curve.steps) < 30:
        return None
    size = np.abs(trailing_median(curve.values, 5))
    first, then, now = float(np.abs(curve.values[:5]).max()), float(size[2 * len(size) // 3]), float(size[-1])
    if now <= FAR * max(first, 1e-12) or now - then < 0.5 * then:
        return None
    step = int(curve.steps[np.argmax(size > FAR * first)])
    sign = "targets outside the range of the loss, or a sign" if curve.values[-1] < 0 else "a loss with the wrong sign"
    what = f"the loss ran away to {number(float(curve.values[-1]))} (first: {number(float(curve.values[0]))})"
    return what, step, (sign, "a learning rate that is too high"), _BY_RATE


def _diverged(record: Record) -> Seen | None:
    curve = loss_curve(record)
    events = [e for e in find_events(record) if e.kind == "divergence" and math.isfinite(e.value)]
    if not _is_judged(record) or not events or len(curve.steps) < 30 or not curve.relative_noise[-1] < NOISY:
        return None
    now, late = float(np.median(curve.values[-11:])), float(np.median(curve.values[-40:][:11]))
    first = float(np.max(curve.values[:3]))
    # All that was learned is lost, and the loss is not on its way down again. (A part may be lost to harder data.)
    if now <= first + 8 * float(curve.noise[-1]) / 3 or now < 0.9 * late:
        return None
    event = events[-1]
    command = "`poise run --overhead 1` (samples every step and measures the curvature)"
    causes = ("a learning rate that is too high", "data or targets that changed")
    return f"{event.phrase}, and has not come back", event.step, causes, command


def _stalled(record: Record) -> Seen | None:
    curve = loss_curve(record)
    events = [e for e in find_events(record) if e.kind == "stall"]
    if not _is_judged(record) or not events or not _rests_where_it_began(record):
        return None
    event = events[0]
    u = typical(update_ratio(record), int(curve.steps[-1]))
    guess = float(loss_of_a_guess(record)[-1])
    if u >= LARGE_UPDATE and not curve.level[-1] < AT_GUESS * guess:
        causes, command = ("a learning rate that is too high", "targets that do not belong to the inputs"), _BY_RATE
    elif u < HEALTHY_UPDATE:
        causes = (
            "a learning rate that is too small for the scale of the problem",
            "gradients that do not reach the weights",
        )
        command = "`poise trial --remedy lr_scale=10` (a larger rate cures the first only)"
    else:
        data = (
            "features that the model cannot use" if _are_related(record) else "targets that do not belong to the inputs"
        )
        causes = (data, "targets or inputs that are not scaled")
        command = "training on one batch of 32: if its loss does not go to 0, the scale is the cause, else the data"
    return f"{event.phrase} on, where it started", event.step, causes, command


def _are_related(record: Record) -> bool:
    """Return whether targets were predicted from inputs by other means."""
    relation = record["target_relation"]
    return bool(len(relation.steps) and relation.values[-1] > 6)


def _rests_where_it_began(record: Record) -> bool:
    curve = loss_curve(record)
    if np.isfinite(loss_of_a_guess(record)[-1]):
        return bool(curve.level[-1] > trivial_loss(record)[-1])
    first, last = float(np.median(curve.values[:11])), float(np.median(curve.values[-25:]))
    # A loss that was much lower before has met harder data.
    never_lower = curve.best[-1] > 0.8 * first
    return last > UNCHANGED * first - float(curve.noise[-1]) / 2 and bool(
        never_lower and 0 < curve.relative_noise[-1] < NOISY
    )


def _is_judged(record: Record) -> bool:
    return record.last_step < loss_is_no_measure(record)


CAUSE = Cause(
    id="undetermined",
    title="The run failed for a reason that is not known",
    find=find,
    exact=False,
    doc=__doc__,
    family="undetermined",
)
