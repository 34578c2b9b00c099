"""How few rows have to go for a conclusion to change: the approximate maximum influence of a set of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Change = Literal["sign", "significance", "sign and significance"]
CHANGES: tuple[Change, ...] = get_args(Change)
Z = float(stats.norm.isf(0.025))


@dataclass(frozen=True, slots=True, eq=False)
class RowsToDrop:
    """The rows whose absence changes a conclusion, by the influence function.

    Attributes:
        change: of the conclusion.
        order: units (rows, or groups of rows) by how much their absence moves the estimate towards the change.
        count: how many of the first ones suffice; ``None`` if half of all do not.
        estimate: what the influence function says that the estimate is without them.
        stderr: the same of the standard error.
    """

    change: Change
    order: Int[np.ndarray, " units"]
    count: int | None
    estimate: float
    stderr: float


def rows_to_drop(
    estimate: float,
    stderr: float,
    influence: Float[np.ndarray, " units"],
    change: Change,
    sizes: Float[np.ndarray, " units"] | None = None,
) -> RowsToDrop:
    """Return the rows whose absence changes the sign or the significance (at 5 %) of an estimate.

    An estimate without a set of rows is, to first order, the estimate less the sum of their influences over the number
    of rows left; for a mean this is exact. So the set of a size that moves it most is found by sorting. A change of
    *significance* is away from what it is: a significant estimate loses it, another one gains it, with the same sign.

    Args:
        estimate: of all rows.
        stderr: its standard error; NaN where it is not known, which leaves the change of sign.
        influence: of each row, of mean 0, or the sum of these over each group.
        change: of the conclusion.
        sizes: rows of each group; 1 by default.

    Raises:
        ValueError: if the change is unknown, or needs a standard error that is not known.

    References:
        Broderick, Giordano and Meager (2020). An automatic finite-sample robustness metric: when can dropping a little
        data make a big difference? arXiv:2011.14999.

    Example:
        >>> y = np.array([10.0, 0.5, -1.0, -1.0, -1.0, -1.0])
        >>> rows_to_drop(y.mean(), float("nan"), y - y.mean(), "sign").count
        1
    """
    if change not in CHANGES:
        raise ValueError(f"change must be one of {CHANGES}, got {change!r}")
    if change != "sign" and not stderr > 0:
        raise ValueError(f"stderr must be above 0 for a change of {change}, got {stderr}")
    sizes = np.ones(len(influence)) if sizes is None else sizes
    direction = 1.0 if estimate >= 0 else -1.0
    own = direction * influence
    significant = abs(estimate) > Z * stderr
    # What each row moves alone is exact, so that one row that makes most of the standard error is in its place.
    alone, alone_stderr = _without_each(abs(estimate), own, sizes)
    if change == "sign":
        score, sigmas = own / (sizes.sum() - sizes), 0.0
    elif change == "sign and significance":
        sigmas = Z
        score = -(alone + sigmas * alone_stderr)
    else:
        sigmas = -Z
        score = alone + sigmas * alone_stderr
        score = -score if significant else score
    order = np.argsort(-score, kind="stable")
    estimates, stderrs = _without_first(order, abs(estimate), own, sizes)
    if change == "sign":
        changed = estimates < 0
    elif change == "significance" and not significant:
        changed = estimates - Z * stderrs > 0
    else:
        changed = estimates + sigmas * stderrs < 0
    half = np.cumsum(sizes[order]) <= sizes.sum() / 2
    found = np.flatnonzero(changed & half[: len(changed)])
    if not len(found):
        return RowsToDrop(change, order, None, math.nan, math.nan)
    first = int(found[0])
    return RowsToDrop(change, order, first + 1, direction * float(estimates[first]), float(stderrs[first]))


def _without_each(estimate: float, influence: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and standard errors without each unit alone."""
    left, units = sizes.sum() - sizes, len(influence) - 1
    return estimate - influence / left, _stderr(np.sum(influence**2) - influence**2, -influence, left, units)


def _stderr(squares: np.ndarray, sums: np.ndarray, left: np.ndarray, units: np.ndarray | int) -> np.ndarray:
    """Return standard errors of means of influences, from sums over the units that are left."""
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = np.maximum(squares - sums**2 / units, 0)
        found: np.ndarray = np.sqrt(centred * units / (np.asarray(units) - 1.0)) / left
    return found


def _without_first(
    order: np.ndarray, estimate: float, influence: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and standard errors without the first 1, 2, ... units of an order, all but the last."""
    own, rows = influence[order][:-1], sizes[order][:-1]
    left, units = sizes.sum() - np.cumsum(rows), len(order) - np.arange(1, len(order))
    sums = -np.cumsum(own)
    squares = np.sum(influence**2) - np.cumsum(own**2)
    return estimate + sums / left, _stderr(squares, sums, left, units)
