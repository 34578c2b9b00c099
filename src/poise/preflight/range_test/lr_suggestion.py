"""Read the curve of a learning-rate range test: zones, and learning rates by four rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.stats import linregress

Rule = Literal["valley", "steepest", "divergence/3", "minimum/10"]
RULES: tuple[Rule, ...] = get_args(Rule)

Zone = Literal["underfit", "balance", "overfit", "diverging", "unclear"]

_EDGE = 5
"""Points at either end that no rule may choose: the first are still those of the start, the last those of the end."""


class NoSuggestion(ValueError):
    """A range test gives no learning rate; the message holds the reason, and what to change."""


@dataclass(frozen=True, slots=True)
class LRSuggestion:
    """Learning rates that a range test suggests.

    Args:
        lr_min: where a 1cycle schedule starts, a tenth of ``lr_max``. (Plain triangular cycles: a third or fourth.)
        lr_max: the largest learning rate of a schedule, or a constant one.
        reason: how the curve gave it.
        weight_decay: that of the run; ``None`` for the optimizer's own.
        momentum: that of the run; ``None`` for the optimizer's own.
    """

    lr_min: float
    lr_max: float
    reason: str
    weight_decay: float | None = None
    momentum: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LRRangeCurve:
    """Loss over the learning rate of one run.

    Args:
        lrs: learning rates of the steps that were made, increasing.
        train: training loss before each step.
        val: validation loss before each step, or ``None``.
        smoothing: fraction that the average keeps at each step.
        stopped_at: learning rate at which the loss ended the run; ``None`` if it went on to the last one.
        hi: the last learning rate that was planned.
        weight_decay: set for this run, or ``None``.
        momentum: set for this run, or ``None``.
    """

    lrs: Float[np.ndarray, " steps"]
    train: Float[np.ndarray, " steps"]
    val: Float[np.ndarray, " steps"] | None
    smoothing: float
    stopped_at: float | None
    hi: float
    weight_decay: float | None = None
    momentum: float | None = None
    smoothed: Float[np.ndarray, " steps"] = field(init=False)
    """Bias-corrected exponential average of the loss that is judged: ``val``, or ``train`` without it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothed", smooth(self.judged, self.smoothing))

    @property
    def judged(self) -> Float[np.ndarray, " steps"]:
        """The loss that rules and zones are computed from."""
        return self.train if self.val is None else self.val

    @property
    def centred(self) -> Float[np.ndarray, " steps"]:
        """Running median of five steps of the judged loss: it does not lag, and keeps falls and rises sharp."""
        return np.asarray(median_filter(self.judged, 5, mode="nearest")) if len(self.judged) else self.judged

    @property
    def noise(self) -> float:
        """Median distance of the judged loss from its running median."""
        return float(np.median(np.abs(self.judged - self.centred))) if len(self.lrs) else 0.0

    @property
    def zones(self) -> list[Zone]:
        """The zone of every step, one for each decade of the learning rate.

        The slopes over a decade decide, each against twice its standard error: judged loss falling, *underfit*; flat,
        *balance*; rising while the training loss falls, *overfit*; else rising, *diverging*. With fewer than 5 steps it
        is *unclear*.
        """
        decades = np.floor(np.log10(self.lrs / self.lrs[0]) + 1e-9) if len(self.lrs) else self.lrs
        zone = {decade: self._zone(decades == decade) for decade in np.unique(decades)}
        return [zone[decade] for decade in decades]

    def _zone(self, part: NDArray[np.bool_]) -> Zone:
        if part.sum() < 5:
            return "unclear"
        slope = _sign_of_slope(self.lrs[part], self.judged[part])
        if slope < 0:
            return "underfit"
        if slope == 0:
            return "balance"
        return "overfit" if _sign_of_slope(self.lrs[part], self.train[part]) < 0 else "diverging"


def smooth(values: Float[np.ndarray, " steps"], keep: float) -> Float[np.ndarray, " steps"]:
    """Return the exponential average of the values so far; the first one is the first value.

    Args:
        values: what is averaged.
        keep: fraction that the average keeps at each step, in [0, 1).
    """
    total, weight, out = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out[i] = total / weight
    return out


def suggest_lr(curve: LRRangeCurve, rule: Rule = "minimum/10") -> LRSuggestion:
    """Read learning rates from one curve; the rules are described at :meth:`LRRangeTest.suggest`.

    Args:
        curve: the curve.
        rule: which rule reads it.

    Returns:
        The learning rates, with the reason.

    Raises:
        NoSuggestion: if the curve does not give one.
        ValueError: if ``rule`` is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}")
    _require_turn(curve)
    lr, reason = {
        "divergence/3": _divergence,
        "minimum/10": _minimum,
        "steepest": _steepest,
        "valley": _valley,
    }[rule](curve)
    return LRSuggestion(lr / 10, lr, reason, curve.weight_decay, curve.momentum)


def divergence_lr(curve: LRRangeCurve) -> float:
    """Return the last learning rate at which the loss was within its noise of the lowest, before it ended the run.

    With momentum the loss oscillates: its lowest value may be one of an oscillation, long before the end. So the answer
    is never before the rise that lasts to the end of the run begins.

    Raises:
        NoSuggestion: if the run did not diverge, or did so at once.
    """
    if curve.stopped_at is None:
        raise NoSuggestion(f"the loss did not diverge up to lr={curve.hi:g}; raise hi, or use rule='minimum/10'")
    centred = curve.centred
    last = int(np.flatnonzero(centred <= centred.min() + 2 * curve.noise)[-1])
    if last < _EDGE:
        raise NoSuggestion(f"diverged from lr={curve.lrs[last]:g} on, the start of the range; lower lo")
    nearby = slice(last - 2, last + 3)  # as far as the median may have moved it
    lowest = last - 2 + int(curve.judged[nearby].argmin())
    return float(curve.lrs[max(lowest, _last_rise(curve))])


def _last_rise(curve: LRRangeCurve) -> int:
    """Index of the point from which the loss only rises, up to falls that may be noise (4 standard deviations)."""
    falls = np.flatnonzero(np.diff(curve.judged) < -6 * curve.noise)
    return int(falls[-1]) + 1 if len(falls) else 0


def _require_turn(curve: LRRangeCurve) -> None:
    n = len(curve.lrs)
    if n == 0:
        raise NoSuggestion(f"diverged at lr={curve.stopped_at:g}, the first point: the loss is not finite")
    if n < 2 * _EDGE + 1:
        raise NoSuggestion(f"diverged at lr={curve.stopped_at:g} after {n} steps, too few to read; lower lo")
    centred = curve.centred
    if not centred[:_EDGE].min() - centred.min() > 2 * curve.noise:
        raise NoSuggestion(f"the loss never fell between lr={curve.lrs[0]:g} and lr={curve.lrs[-1]:g}")
    # Not by the average: it lags (at 0.9 by nine steps), and still falls long after the loss has stopped falling.
    if curve.stopped_at is None and int(centred.argmin()) >= n - _EDGE:
        raise NoSuggestion(f"the loss was still falling at lr={curve.lrs[-1]:g}, the end of the range; raise hi")


def _divergence(curve: LRRangeCurve) -> tuple[float, str]:
    lr = divergence_lr(curve)
    return lr / 3, f"a third of lr={lr:.3g}, from which on the loss only rose"


def _minimum(curve: LRRangeCurve) -> tuple[float, str]:
    inner = curve.smoothed[_EDGE:-_EDGE]
    at = _EDGE + int(inner.argmin())
    _refuse_edge(curve, at, "the lowest loss")
    return float(curve.lrs[at]) / 10, f"a tenth of lr={curve.lrs[at]:.3g}, where the smoothed loss was lowest"


def _steepest(curve: LRRangeCurve) -> tuple[float, str]:
    slope = np.gradient(curve.smoothed, np.log(curve.lrs))
    at = _EDGE + int(slope[_EDGE:-_EDGE].argmin())
    _refuse_edge(curve, at, "the steepest fall")
    return float(curve.lrs[at]), "where the smoothed loss fell fastest"


def _valley(curve: LRRangeCurve) -> tuple[float, str]:
    inner = curve.smoothed[_EDGE:-_EDGE]
    fall = np.maximum.accumulate(inner) - inner
    bottom = int(fall.argmax())
    # The flat start before the fall would pull the point to wherever its noise is highest.
    shallow = np.flatnonzero(fall[: bottom + 1] < 0.1 * fall[bottom])
    top = int(shallow[-1]) if len(shallow) else 0
    start, end = (math.log(curve.lrs[_EDGE + i]) for i in (top, bottom))
    lr = math.exp(start + 2 / 3 * (end - start))
    if bottom - top < 3:
        raise NoSuggestion("the loss has no fall of more than two steps away from the ends of the range")
    return lr, f"two thirds down the fall from lr={math.exp(start):.3g} to lr={math.exp(end):.3g}"


def _refuse_edge(curve: LRRangeCurve, at: int, what: str) -> None:
    """Refuse a point that is chosen only because the range ends beside it."""
    if at == _EDGE:
        raise NoSuggestion(f"{what} is at the start of the range, lr={curve.lrs[at]:.3g}; lower lo")
    if at == len(curve.lrs) - _EDGE - 1 and curve.stopped_at is None:
        raise NoSuggestion(f"{what} is at the end of the range, lr={curve.lrs[at]:.3g}; raise hi")


def _sign_of_slope(lrs: NDArray[np.float64], losses: NDArray[np.float64]) -> int:
    fit = linregress(np.log(lrs), losses)
    return 0 if abs(fit.slope) <= 2 * fit.stderr else int(np.sign(fit.slope))
