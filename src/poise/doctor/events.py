"""What happens to a loss: spikes, divergence, stalls.

An event is what a user sees; a cause is why it happened. Events are not findings: causes use them to tell whether
something did harm. All three rules use the past only, so an event is known, unchanged, from its ``detected_step`` on.

Definitions, with ``start`` the loss at the start, ``best`` the lowest running median so far, ``drop`` their difference:

- *spike*: a loss more than 8 robust standard deviations above the median of the 11 before it, and above it by more than
  5 % of it and a fifth of ``drop`` (so that one hard example late in training, small compared to ``drop``, is not a
  spike);
- *divergence*: a loss that is not finite; or a median of five that gave back half of what was learned
  (``best + drop / 2``), or, where nothing was learned yet, that doubled; and that lies above ``best`` by more than the
  noise at the time of ``best`` explains: 8 robust standard deviations, and 5 of the logarithm of a positive loss;
- *stall*: no new best for a third of the run so far (at least 40 steps) while the loss is still at its trivial value,
  that of a guess: 97 % of the entropy of the targets, or of their variance, where that is known, else four fifths of
  where it started. (A loss that has fallen further and no longer changes may have reached the noise of its data: the
  loss alone cannot show it.)

Where the loss is known not to measure progress (policy gradients, targets that a copy of the model makes, a model that
acts, see :func:`loss_is_no_measure`), a loss that is not finite is the only event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from poise.store import Record, Series

EventKind = Literal["spike", "divergence", "stall"]


@dataclass(frozen=True, slots=True)
class LossEvent:
    """Something that happened to the loss.

    Args:
        kind: ``"spike"``, ``"divergence"`` or ``"stall"``.
        step: step at which it began.
        detected_step: first step at which the record sufficed to find it.
        value: the loss then.
        level: what the loss was before.
        happened: what happened, in words, where it is not the loss that shows it.
    """

    kind: EventKind
    step: int
    detected_step: int
    value: float
    level: float
    happened: str = ""

    @property
    def phrase(self) -> str:
        """What happened, as the end of a sentence."""
        if self.happened:
            return self.happened
        if self.kind == "spike":
            return f"the loss spiked from {self.level:.3g} to {self.value:.3g} at step {self.step}"
        if self.kind == "stall":
            return f"the loss stalled at {self.value:.3g} from step {self.step}"
        if not np.isfinite(self.value):
            return f"the loss was no longer finite at step {self.step}"
        return f"the loss diverged from {self.level:.3g} to {self.value:.3g} from step {self.step}"


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The loss with the backward-looking statistics that rules need, one entry per step.

    Args:
        steps: steps with a loss, from the first finite one.
        values: the losses; where one is not finite, the last finite one.
        level: median of the last 11.
        noise: robust standard deviation from step to step, over the last 25.
        relative_noise: the same of the logarithm of the loss; 0 where a loss was not positive.
        start: smallest of the first three, so that it is right also for a run that diverges at once.
        best: lowest ``level`` so far.
    """

    steps: np.ndarray
    values: np.ndarray
    level: np.ndarray
    noise: np.ndarray
    relative_noise: np.ndarray
    start: np.ndarray
    best: np.ndarray


def trailing_median(values: np.ndarray, window: int) -> np.ndarray:
    """Return the median of the last ``window`` (odd) entries, or of as many as there are."""
    out = np.empty(len(values))
    for i in range(min(window - 1, len(values))):
        out[i] = np.median(values[: i + 1])
    if len(values) >= window:
        # In portions: the median of windows copies them. (scipy.ndimage could do it, but takes longer to import.)
        windows = np.lib.stride_tricks.sliding_window_view(values, window)
        for first in range(0, len(windows), 1 << 14):
            part = windows[first : first + (1 << 14)]
            out[window - 1 + first : window - 1 + first + len(part)] = np.median(part, axis=1)
    return out


def loss_curve(record: Record) -> LossCurve:
    """Return the loss of a record with its statistics; empty where no finite loss was recorded.

    It is computed once for each view of a record.
    """
    return record.derive(_loss_curve)


def _loss_curve(record: Record) -> LossCurve:
    loss = record["loss"]
    values = np.asarray(loss.values, dtype=float)
    finite = np.flatnonzero(np.isfinite(values))
    first = int(finite[0]) if len(finite) else len(values)
    steps, values = np.asarray(loss.steps)[first:], values[first:]
    if not len(values):
        empty = np.zeros(0)
        return LossCurve(steps, empty, empty, empty, empty, empty, empty)
    last_finite = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))
    values = values[last_finite]
    level = trailing_median(values, 11)
    start = np.minimum.accumulate(values)
    start[3:] = start[min(2, len(start) - 1)]
    positive = np.minimum.accumulate(values) > 0
    relative = _noise(np.log(np.where(positive, values, 1.0)))
    return LossCurve(steps, values, level, _noise(values), relative * positive, start, np.minimum.accumulate(level))


def _noise(values: np.ndarray) -> np.ndarray:
    # Of differences, because the fall of a loss is no noise; each holds the noise of two losses.
    return 1.4826 / np.sqrt(2) * trailing_median(np.abs(np.diff(values, prepend=values[:1])), 25)


def find_events(record: Record) -> list[LossEvent]:
    """Return the spikes, divergences and stalls of the loss in the order in which they become known.

    They are computed once for each view of a record.
    """
    return list(record.derive(_find_events))


def _find_events(record: Record) -> tuple[LossEvent, ...]:
    curve = loss_curve(record)
    events = _nonfinite(record["loss"])
    if len(curve.steps):
        trivial = trivial_loss(record)
        events += [
            event
            for event in _spikes(curve) + _divergences(curve) + _stalls(curve, trivial)
            if event.detected_step < loss_is_no_measure(record)
        ]
    return tuple(sorted(events, key=lambda event: (event.detected_step, event.step)))


def loss_is_no_measure(record: Record) -> float:
    """Return the step from which on it is known that the loss does not measure progress; infinity where it does.

    The loss of a policy gradient is near 0 whatever the policy does, a loss against targets that a copy of the
    model makes rises as they become harder or larger, and so does one on data that the model makes by acting.
    """
    kinds = ("policy_gradient", "bootstrapped", "environment")
    return min((event.step for kind in kinds for event in record.events(kind)), default=np.inf)


def trivial_loss(record: Record) -> np.ndarray:
    """Return, for each entry of the loss curve, the loss above which nothing was learned yet."""
    curve = loss_curve(record)
    at_start, guess = 0.8 * curve.start, 0.97 * loss_of_a_guess(record)
    return np.where(np.isfinite(guess), np.minimum(guess, at_start), at_start)


def loss_of_a_guess(record: Record) -> np.ndarray:
    """Return, for each entry of the loss curve, the loss of the best prediction that does not look at the inputs.

    It is the entropy of the targets for cross-entropy, their variance for the squared error. NaN where it is not known:
    the loss is made in another way, or there are more than 20 classes, whose entropy the few labels of a batch tell too
    low.
    """
    guess = record["guess_loss"]
    if len(guess.steps):
        return _mean_so_far(guess, loss_curve(record).steps)
    steps, entropy, classes = loss_curve(record).steps, record["label_entropy"], record["classes"]
    unknown = np.full(len(steps), np.nan)
    if not len(entropy.steps) or not len(classes.steps):
        return unknown
    known = trailing_median(np.where(np.isfinite(entropy.values), entropy.values, 0.0), 25)
    at = np.searchsorted(entropy.steps, steps, side="right") - 1
    count = np.searchsorted(classes.steps, steps, side="right") - 1
    few = (count >= 0) & (classes.values[np.maximum(count, 0)] <= 20)
    return np.where((at >= 0) & few & (known[np.maximum(at, 0)] > 0), known[np.maximum(at, 0)], unknown)


def _mean_so_far(series: Series, steps: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(np.asarray(series.values, dtype=float), posinf=0.0, neginf=0.0)
    mean = np.cumsum(values) / np.arange(1, len(values) + 1)
    at = np.searchsorted(series.steps, steps, side="right") - 1
    return np.where((at >= 0) & (mean[np.maximum(at, 0)] > 0), mean[np.maximum(at, 0)], np.nan)


def following(events: list[LossEvent], step: int, within: int | None = None) -> LossEvent | None:
    """Return the earliest known event that began at or after ``step`` (and at most ``within`` steps after)."""
    for event in events:
        if event.step >= step and (within is None or event.step <= step + within):
            return event
    return None


def breakdowns(events: list[LossEvent]) -> list[LossEvent]:
    """Return the spikes and divergences."""
    return [event for event in events if event.kind != "stall"]


def stayed_up(record: Record, event: LossEvent, steps: int = 3) -> tuple[bool, int] | None:
    """Return whether the loss kept more than half of its rise over the next few steps, and when that is known.

    This separates harm to the weights from one hard batch. ``None`` while it is not known yet.
    """
    loss = record["loss"]
    after = np.flatnonzero(loss.steps > event.step)[:steps]
    if not np.isfinite(event.value):
        return True, event.detected_step
    values = np.asarray(loss.values)[after]
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        return True, int(loss.steps[after[broken[0]]])
    if len(after) < steps:
        return None
    middle = event.level + 0.5 * (event.value - event.level)
    return bool(np.median(values) > middle), int(loss.steps[after[-1]])


def _nonfinite(loss: Series) -> list[LossEvent]:
    values = np.asarray(loss.values, dtype=float)
    bad = np.flatnonzero(~np.isfinite(values))
    if not len(bad):
        return []
    i = int(bad[0])
    step = int(loss.steps[i])
    return [LossEvent("divergence", step, step, float(values[i]), float(values[i - 1]) if i else float("nan"))]


def _spikes(curve: LossCurve) -> list[LossEvent]:
    # The short median follows a falling loss; a longer one would count the fall as noise.
    before, spread = np.roll(curve.level, 1), np.roll(curve.noise, 1)
    rise = curve.values - before
    scale = spread + 1e-3 * np.abs(before)
    enough = np.maximum(0.05 * np.abs(before), 0.2 * (curve.start - curve.best))
    candidates = np.flatnonzero((rise > 8 * scale) & (rise > enough))
    events: list[LossEvent] = []
    free_from, calm = 15, 0.0  # fewer losses, while they fall fast, are too few to estimate noise
    for i in candidates:
        if i < free_from or (events and not _is_calm_since(curve, free_from, int(i), events[-1].level + 3 * calm)):
            continue
        step = int(curve.steps[i])
        events.append(LossEvent("spike", step, step, float(curve.values[i]), float(before[i])))
        free_from, calm = int(i) + 1, float(scale[i])
    return events


def _is_calm_since(curve: LossCurve, start: int, now: int, limit: float) -> bool:
    return now - start >= 50 or bool((curve.values[start:now] < limit).any())


def _divergences(curve: LossCurve) -> list[LossEvent]:
    short = _level_of_five(curve)
    start = _start_of_a_rise(curve)
    size, drop = np.abs(start), start - curve.best
    gave_back = curve.best + np.maximum(0.5 * drop, 0.25 * size)
    limit = np.where(drop >= 0.2 * size, gave_back, start + size)
    limit = np.maximum(limit, curve.best + 8 * _at_best(curve, curve.noise))
    relative = _at_best(curve, curve.relative_noise)
    limit = np.where(relative > 0, np.maximum(limit, curve.best * np.exp(5 * np.minimum(relative, 100))), limit)
    # One or two early losses are no median: a spike there is over before the median is reliable.
    above = (short > limit) & (np.arange(len(short)) >= 3)
    events: list[LossEvent] = []
    last = -100
    for i in map(int, np.flatnonzero(above)):
        if i - last > 10:
            window = np.arange(max(i - 9, 0), i + 1)
            first = int(window[np.argmax(curve.values[window] > limit[i])])
            level = float(curve.level[first - 1]) if first else float(curve.start[i])
            value = float(curve.values[i])
            events.append(LossEvent("divergence", int(curve.steps[first]), int(curve.steps[i]), value, level))
        last = i
    return events


def _level_of_five(curve: LossCurve) -> np.ndarray:
    """Return the median of the last five; among the first 25 losses their smallest, as their noise is not known yet.

    A loss that rises from the very first one needs no such care.
    """
    values, median = curve.values, trailing_median(curve.values, 5)
    if _rises_at_once(curve):
        return median
    lowest = [values[max(i - 4, 0) : i + 1].min() for i in range(min(25, len(values)))]
    median[: len(lowest)] = lowest
    return median


def _start_of_a_rise(curve: LossCurve) -> np.ndarray:
    """Return where the loss came from: the first loss if the next two are far above it, else the largest of the three.

    An easy first batch is no level that later ones have risen from.
    """
    start = np.maximum.accumulate(curve.values)
    start[3:] = start[min(2, len(start) - 1)]
    if _rises_at_once(curve):
        start[:] = curve.values[0]
    return start


def _rises_at_once(curve: LossCurve) -> bool:
    """Return whether the second and third loss are far above the first: 4 times it, which small batches rarely are."""
    first = curve.values[:1]
    return len(curve.values) >= 3 and bool(np.all(curve.values[1:3] - first > 3 * np.abs(first)))


def _at_best(curve: LossCurve, noise: np.ndarray) -> np.ndarray:
    """Return, for each step, the noise when the loss was at its best so far: later it may be that of a breakdown.

    The first entries know too few losses to speak of noise: there it is 0.
    """
    here = np.arange(len(noise))
    best_at = np.maximum.accumulate(np.where(curve.level <= curve.best, here, 0))
    return np.where(best_at >= 10, noise[best_at], 0.0)


def _stalls(curve: LossCurve, trivial: np.ndarray) -> list[LossEvent]:
    level = trailing_median(curve.values, 25)
    best = np.minimum.accumulate(level)
    here = np.arange(len(level))
    back = np.maximum(40, here // 3)
    long_enough = here >= back
    then = np.maximum(here - back, 0)
    gain = best[then] - best
    still = gain < np.maximum(0.01 * np.abs(curve.start), 0.3 * curve.noise)
    stalled = long_enough & still & (curve.start > 0) & (level > trivial)
    events: list[LossEvent] = []
    for i in np.flatnonzero(stalled & ~np.roll(stalled, 1)):
        step = int(curve.steps[then[i]])
        if events and step <= events[-1].detected_step:
            continue
        events.append(LossEvent("stall", step, int(curve.steps[i]), float(level[i]), float(curve.start[i])))
    return events
