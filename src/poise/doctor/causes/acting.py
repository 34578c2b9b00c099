"""What is comparable over time in a run whose loss is no measure of progress, because the model acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from poise.doctor.causes.reading import number, update_ratio
from poise.doctor.events import loss_curve, loss_is_no_measure
from poise.store import Record, Series

REPLACED = 0.5  # update over weight
AFTER = 10  # steps within which harm follows
UNDECIDED, DECIDED = 0.3, 0.02  # entropy of a policy over that of the uniform one
VALUES = 100.0  # growth of the loss in so few steps
DEAD = 1e-3  # of the gradient norm
ZERO = 1e3  # an update this much larger than the weights says that they began at zero


@dataclass(frozen=True, slots=True)
class Harm:
    """What one large update has done.

    Args:
        step: of the update.
        known: step at which the harm was seen.
        update: size of the update over that of the weights.
        what: the harm, as the end of a sentence.
    """

    step: int
    known: int
    update: float
    what: str


def harm_of_an_update(record: Record) -> Harm | None:
    """Return the update that replaced half of the weights and is the first known to have done harm, if there is one.

    The policy became deterministic, the loss grew a hundredfold, or the gradient died, within ten steps.
    """
    acts = loss_is_no_measure(record)
    if not math.isfinite(acts):
        return None
    updates = update_ratio(record)
    values = np.asarray(updates.values, dtype=float)
    found = [
        Harm(step, max(seen[0], int(acts)), float(values[i]), seen[1])
        for i in np.flatnonzero((values >= REPLACED) & (values < ZERO))
        for step in (int(updates.steps[i]),)
        for seen in (_decided(record, step), _exploded(record, step), _died(record, step))
        if seen is not None
    ]
    return min(found, key=lambda harm: (harm.known, harm.step, harm.what), default=None)


def _decided(record: Record, step: int) -> tuple[int, str] | None:
    entropy = record["policy_entropy"]
    before, after = _around(entropy, step)
    if not len(before) or not before[-1] >= UNDECIDED:
        return None
    low = np.flatnonzero(after <= DECIDED)
    if not len(low):
        return None
    known = int(entropy.steps[entropy.steps > step][low[0]])
    return known, f"the policy became deterministic (entropy {number(float(before[-1]))} of the uniform one before it)"


def _exploded(record: Record, step: int) -> tuple[int, str] | None:
    curve = loss_curve(record)
    size = np.abs(curve.values)
    before, after = _around(Series(curve.steps, size), step)
    if not len(before) or not before.max() > 0:
        return None
    high = np.flatnonzero(after >= VALUES * before.max())
    if not len(high):
        return None
    i = np.flatnonzero(curve.steps > step)[high[0]]
    return int(curve.steps[i]), f"the loss grew from {number(float(before.max()))} to {number(float(size[i]))}"


def _died(record: Record, step: int) -> tuple[int, str] | None:
    norms = record["grad_norm"]
    before, after = _around(norms, step)
    if len(after) < 3 or not len(before) or not np.all(after[:3] < DEAD * before.max()):
        return None
    return int(norms.steps[norms.steps > step][2]), "the gradient died"


def _around(series: Series, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the last five values up to ``step`` and those of the ten steps after it."""
    values = np.asarray(series.values, dtype=float)
    here = series.steps <= step
    return values[here][-5:], values[~here & (series.steps <= step + AFTER)]
