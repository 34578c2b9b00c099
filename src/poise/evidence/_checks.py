"""Checks of arguments, for several files of this room."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HUGE = 1e100
"""Scores beyond this have diverged: their squares and cubes would overflow."""


def counts(name: str, values: Any) -> NDArray[np.float64]:
    """Return a flat float array of whole numbers that are not negative, or raise ValueError."""
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}")
    wrong = array[~((array >= 0) & (array == np.floor(array)) & np.isfinite(array))]
    if wrong.size:
        raise ValueError(f"{name} must be whole numbers that are not negative, got {wrong[0]:g}")
    return array


def successes_and_trials(successes: Any, trials: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as count arrays of one length with successes <= trials, or raise ValueError."""
    x, n = counts("successes", successes), counts("trials", trials)
    if x.shape != n.shape or not x.size:
        raise ValueError(f"successes and trials must have one length, at least 1, got {x.size} and {n.size}")
    bad = np.flatnonzero(x > n)
    if bad.size:
        i = int(bad[0])
        raise ValueError(f"successes must not exceed trials, got {x[i]:g} of {n[i]:g} in row {i}")
    return x, n


def count(name: str, value: float) -> int:
    """Return one whole number that is not negative, or raise ValueError."""
    return int(counts(name, [value])[0])


def fraction(name: str, value: float) -> float:
    """Return a number strictly between 0 and 1, or raise ValueError."""
    if not (0.0 < value < 1.0):
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
    return float(value)


def scores(name: str, values: Any, diverged_as: float | None = None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores and which of them stand for a diverged run, or raise ValueError."""
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a one-dimensional sequence of at least one score, got shape {array.shape}")
    diverged = ~(np.abs(array) <= _HUGE)
    if diverged.any() and diverged_as is None:
        first = int(np.flatnonzero(diverged)[0])
        raise ValueError(
            f"{name} must be finite and below {_HUGE:g}, got {array[first]} at position {first}; "
            "set diverged_as to the score of a diverged run, "
            "or compare divergences with compare_event_rates"
        )
    if diverged_as is not None and not math.isfinite(diverged_as):
        raise ValueError(f"diverged_as must be finite, got {diverged_as}")
    return np.where(diverged, 0.0 if diverged_as is None else diverged_as, array), diverged
