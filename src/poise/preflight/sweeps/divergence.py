"""Diverged runs are stopped early, by a rule that rather lets a run continue than stop one that may recover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poise.doctor.events import trailing_median

FACTOR = 1000.0
"""A loss has to stay this multiple of its changes so far above the first one."""

_FIRST = 10  # losses whose range counts among the changes so far
_ROUNDING = 1e-6  # of a loss: changes below it say nothing

_LONG = 50  # losses for which it has to stay there, and at least half of the run so far
_HUGE = 1e150  # stands for what is not finite; its square is a float
_NOT_FINITE = 3  # in a row: a loss scaler recovers from one or two
_MEDIAN = 11
_NEXT_CHECK = 1.05  # the next check is when the run is this many times as long: a long run is not checked at each step


class DivergedRunError(Exception):
    """Ends a run that has diverged; :func:`sweep` counts it as such.

    Args:
        step: at which it was stopped.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"the run has diverged (stopped at step {self.step})"


class LossWatch:
    """Follows the loss of one run: call it with every step and loss, or every so often.

    Report the loss at initialisation first: later losses are compared with it, and a run that is stopped counts as this
    loss.

    Raises:
        DivergedRunError: from the call at which the run has diverged, see :func:`has_diverged`.

    Example:
        >>> watch = LossWatch()
        >>> for step, loss in enumerate([2.0, float("nan"), float("nan"), float("nan")]):
        ...     watch(step, loss)
        Traceback (most recent call last):
        ...
        poise.preflight.sweeps.divergence.DivergedRunError: the run has diverged (stopped at step 3)
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._next = 0.0
        self._broken = 0

    def __call__(self, step: int, loss: float) -> None:
        """Add a loss.

        Args:
            step: the step, for the record.
            loss: a number, or a tensor with one entry.
        """
        self.losses.append(float(loss))
        self._broken = 0 if math.isfinite(self.losses[-1]) else self._broken + 1
        if self._broken < _NOT_FINITE and len(self.losses) < self._next:
            return
        self._next = _NEXT_CHECK * len(self.losses)
        if has_diverged(self.losses):
            raise DivergedRunError(int(step))


def has_diverged(losses: Sequence[float] | NDArray[np.float64]) -> bool:
    r"""Return whether a run has diverged, so that it may be stopped.

    It has if the last three losses are not finite, or if the running median of the last 50 losses, and of the second
    half of the run, stayed so far above the first loss that neither its changes so far nor its noise explain it:

    .. math:: \min_{t \in W} \operatorname{median}_{11}(\ell)_t - \ell_0 > \max(1000\, u, 5 \sigma), \qquad
        u = \max\left(\ell_0 - \min_{t \notin W} \ell_t,\; \max_{t<10} \ell_t - \min_{t<10} \ell_t\right)

    with :math:`\sigma` the noise from step to step over :math:`W`. Only differences of losses are compared: a constant
    added to the loss, or a factor on it, changes no answer. A run that leaps within its first ten losses and stays
    finite is therefore not stopped: nothing in it says how large the leap is. A smaller factor would be wrong: a
    character GPT whose loss was 5 to 26 times its first loss for 100 of 200 steps ended below it, when the schedule had
    lowered the learning rate.

    Args:
        losses: in the order of the steps, the first one at initialisation.
    """
    values = np.asarray(losses, dtype=float)
    if len(values) >= _NOT_FINITE and not np.isfinite(values[-_NOT_FINITE:]).any():
        return True
    window = max(_LONG, len(values) // 2)
    if len(values) < window + _MEDIAN or not np.isfinite(values[0]):
        return False
    first, before = values[:_FIRST], values[:-window]
    if not np.isfinite(first).all():
        return False
    so_far = max(values[0] - np.nanmin(before), first.max() - first.min(), _ROUNDING * np.abs(first).max())
    recent = np.nan_to_num(values[-window - _MEDIAN :], nan=_HUGE, posinf=_HUGE, neginf=-_HUGE)
    noise = float(np.diff(recent[-window:]).std()) / math.sqrt(2)
    level = trailing_median(recent, _MEDIAN)[-window:]
    return bool(level.min() - values[0] > max(FACTOR * so_far, 5 * noise))
