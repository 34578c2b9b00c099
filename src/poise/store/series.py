"""The values of one signal over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One signal: its values and the steps they belong to, sorted by step. Immutable.

    A step may occur twice if it was written twice; the values then are in the order of writing.

    Args:
        steps: optimizer steps, non-decreasing.
        values: the value at each step; NaN and infinities are kept as they were measured.

    Raises:
        ValueError: if the arrays are not one-dimensional, differ in length, or ``steps`` decreases somewhere.
    """

    steps: Int64[np.ndarray, " n"]
    values: Float64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        steps, values = _frozen(self.steps, np.int64), _frozen(self.values, np.float64)
        if steps.ndim != 1 or steps.shape != values.shape:
            raise ValueError(f"steps and values must be vectors of one length, got {steps.shape} and {values.shape}")
        if np.any(steps[1:] < steps[:-1]):
            raise ValueError("steps must be sorted, got steps that decrease")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.steps)

    def until(self, step: int) -> Series:
        """Return the part with steps up to and including ``step``."""
        end = int(np.searchsorted(self.steps, step, side="right"))
        return self if end == len(self) else Series(self.steps[:end], self.values[:end])


def sorted_series(steps: Any, values: Any) -> Series:
    """Make a series of rows in any order; rows of equal steps keep theirs."""
    steps, values = np.asarray(steps), np.asarray(values)
    if steps.ndim == 1 and steps.shape == values.shape and np.any(steps[1:] < steps[:-1]):
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
    return Series(steps, values)


def _frozen(array: Any, dtype: type) -> np.ndarray:
    # A writable array may still be changed by its owner: copy. Slices of frozen arrays are shared.
    given = np.asarray(array)
    if dtype is np.int64 and given.dtype.kind not in "iu" and given.size:
        raise ValueError(f"steps must be integers, got {given.dtype}")
    out: np.ndarray = given.astype(dtype, copy=given.flags.writeable)
    out.setflags(write=False)
    return out
