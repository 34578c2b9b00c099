"""A benign catapult: the loss spiked once, and the run continued in a flatter region.

## What it is
The curvature grew past the largest one that is stable at the learning rate, the weights oscillated along the sharpest
direction, and settled in a region where the curvature is lower. Large learning rates find flat minima in this way.

## Why it hurts
It does not. The loss is back where it was within some tens of steps, and the run is more stable than before. It is
reported so that nobody treats it: a smaller learning rate, or clipping, would keep the run in the sharper region.

## How it is detected
A spike of the loss with the measured `edge_ratio` above 1 within the 20 steps before it or the 10 after, a `sharpness`
that in two measurements running after the spike is at least 30 % below the highest one around it, and a loss that is
back within 50 steps (at most a fifth of what was learned above its level from before) and below its trivial value,
with no layer most of whose units have died meanwhile. It is for information: there is
nothing to do, and no remedy is named.

## What cures it
Nothing needs to be cured.

## References
- Lewkowycz et al., *The large learning rate phase of deep learning: the catapult mechanism*, 2020, arXiv:2003.02218
- Gilmer et al., *A loss curvature perspective on training instability in deep learning*, ICLR 2022, arXiv:2110.04369
"""

from __future__ import annotations

import numpy as np

from poise.doctor.causes.cause import Cause
from poise.doctor.causes.reading import first_run, number, value_at
from poise.doctor.events import LossCurve, LossEvent, find_events, loss_curve, trivial_loss
from poise.report.finding import Evidence, Finding
from poise.store import Record

EDGE, FLATTER = 1.0, 0.7
BEFORE, AFTER, BACK = 20, 10, 50
CONSECUTIVE = 2  # measurements
DEAD = 0.5


def find(record: Record) -> list[Finding]:
    """Find the first spike that came from the edge of stability and led to a flatter region."""
    spikes = [event for event in find_events(record) if event.kind == "spike"]
    known = [(step, event) for event in spikes if (step := _settled(record, event)) is not None]
    if not known:
        return []
    detected, event = min(known, key=lambda found: (found[0], found[1].step))
    ratio, high = _highest(record, event)
    low = value_at(record["sharpness"], detected)
    return [
        CAUSE.finding(
            "info",
            0.8,
            f"At the edge of stability (curvature {number(ratio)} times what is stable at the learning rate), "
            f"{event.phrase}, and came back in a flatter region: the sharpness fell from {number(high)} to "
            f"{number(low)}. Nothing has to be done.",
            onset=_crossed(record, event),
            detected=detected,
            event=event.step,
            evidence=[
                Evidence("edge_ratio", ratio, EDGE, None, event.step),
                Evidence("sharpness", low, FLATTER * high, high, detected),
            ],
        )
    ]


def _crossed(record: Record, event: LossEvent) -> int:
    """Return the first step near an event at which the edge was crossed: oscillation grows before the loss does."""
    ratio = record["edge_ratio"]
    over = (ratio.steps >= event.step - BEFORE) & (ratio.steps <= event.step) & (ratio.values > EDGE)
    return int(ratio.steps[over][0]) if over.any() else event.step


def _highest(record: Record, event: LossEvent) -> tuple[float, float]:
    """Return the highest ratio and sharpness around an event; zeros if none was measured there."""
    ratio, sharpness = record["edge_ratio"], record["sharpness"]
    highest = []
    for series in (ratio, sharpness):
        near = (series.steps >= event.step - BEFORE) & (series.steps <= event.step + AFTER)
        highest.append(float(np.max(series.values[near & np.isfinite(series.values)], initial=0.0)))
    return highest[0], highest[1]


def _settled(record: Record, event: LossEvent) -> int | None:
    """Return the step by which an event is known to be benign; ``None`` if it has not."""
    ratio, high = _highest(record, event)
    if ratio <= EDGE or not np.isfinite(event.value):
        return None
    curve = loss_curve(record)
    back = np.flatnonzero((curve.steps > event.step) & (curve.values <= _back_at(curve, event)))
    sharpness = record["sharpness"]
    # The highest one is known ten steps after the event: from then on the comparison stands.
    later = sharpness.steps > event.step + AFTER
    flat = first_run((sharpness.values <= FLATTER * high) & later, CONSECUTIVE)
    if not len(back) or curve.steps[back[0]] > event.step + BACK or flat is None:
        return None
    landed = max(int(curve.steps[back[0]]), int(sharpness.steps[flat]))
    return landed if _goes_on_learning(record, curve, landed) else None


def _goes_on_learning(record: Record, curve: LossCurve, step: int) -> bool:
    """Return whether the loss is below that of a guess at a step, and the layers live."""
    at = int(np.searchsorted(curve.steps, step, side="right")) - 1
    units = record.by_layer("dead_units").values()
    return bool(curve.level[at] < trivial_loss(record)[at]) and not any(value_at(u, step) > DEAD for u in units)


def _back_at(curve: LossCurve, event: LossEvent) -> float:
    """Return the loss at which an event counts as over: a fifth of what was learned above the level before it."""
    before = int(np.searchsorted(curve.steps, event.step)) - 1
    return event.level + 0.2 * float(curve.start[before] - curve.best[before])


CAUSE = Cause(
    id="benign_catapult",
    title="A benign catapult",
    find=find,
    exact=False,
    doc=__doc__,
    family="learning rate",
    leads_to=("bad_batch",),
    benign=True,
)
