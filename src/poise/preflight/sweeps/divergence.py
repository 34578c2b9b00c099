"""Diverged runs are stopped early, by a rule that rather lets a run continue than stop one that may recover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poise.doctor.events import trailing_median

FACTOR = 100.0
"""A loss has to stay above this multiple of the first one."""

_LONG = 50  # losses for which it has to stay there, and at least half of the run so far
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
    half of the run, stayed above 100 times the first loss and far outside the noise:

    .. math:: \min_{t \in W} \operatorname{median}_{11}(x)_t - x_0 > \max(\log 100, 5 \sigma), \qquad
        x = \operatorname{asinh}(\ell / |\ell_0|)

    (:math:`x` is the logarithm of large losses, and defined for losses below zero; :math:`\sigma` is its noise from
    step to step over :math:`W`.) A smaller factor would be wrong: a character GPT whose loss was 5 to 26 times its
    first loss for 100 of 200 steps ended below it, when the schedule had lowered the learning rate.

    Args:
        losses: in the order of the steps, the first one at initialisation.
    """
    values = np.asarray(losses, dtype=float)
    if len(values) >= _NOT_FINITE and not np.isfinite(values[-_NOT_FINITE:]).any():
        return True
    window = max(_LONG, len(values) // 2)
    if len(values) < window + _MEDIAN or not np.isfinite(values[0]):
        return False
    scale = max(abs(float(values[0])), 1e-100)
    x = np.arcsinh(np.nan_to_num(values[-window - _MEDIAN :], nan=1e200, posinf=1e200, neginf=-1e200) / scale)
    noise = float(np.diff(x[-window:]).std()) / math.sqrt(2)
    level = trailing_median(x, _MEDIAN)[-window:]
    start = math.asinh(float(values[0]) / scale)
    return bool(level.min() - start > max(math.log(FACTOR), 5 * noise))
