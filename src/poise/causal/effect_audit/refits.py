"""The smallest set of rows that was found to change a conclusion when the estimator is fitted without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from poise.causal.average_effect import AverageEffect
from poise.causal.effect_audit.facts import Flip
from poise.causal.effect_audit.few_rows import Change, Z, rows_to_drop

REFITS = 5
"""Most refits for one change."""

_SHOWN = 10
_GROWTH = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What is left out: rows, or groups of rows.

    Args:
        of_row: number of each row's unit.
        name: ``"rows"`` or ``"groups"``.
    """

    of_row: Int[np.ndarray, " rows"]
    name: str = "rows"

    def __len__(self) -> int:
        return int(self.of_row.max()) + 1

    def sums(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the sum over each unit of values of some rows."""
        return np.bincount(self.of_row[rows], weights=values, minlength=len(self))


Refit = Callable[[np.ndarray], AverageEffect | None]
"""Returns the average of the rows of this number; ``None`` where they are too few to fit."""


def few_rows_that_change(
    change: Change, average: AverageEffect, influence: np.ndarray, units: Units, refit: Refit
) -> Flip:
    """Look for the smallest set of units whose absence changes a conclusion, by influence functions and refits.

    The first set is what the influence function predicts. Where a refit shows that the conclusion has changed, half of
    the set is tried; where it has not, the influence of the rows that are left says what else to leave out. So a single
    row that spoils the learners of nuisances is found as well, which the influence function, with its fixed nuisances,
    does not know of.

    Args:
        change: of the conclusion.
        average: of all rows.
        influence: of all rows on it.
        units: what is left out.
        refit: fits without rows.
    """
    everything = np.arange(len(units.of_row))
    known = average.stderr if average.stderr > 0 else math.nan
    drop = rows_to_drop(
        average.estimate,
        known,
        units.sums(influence, everything),
        change,
        units.sums(np.ones(len(everything)), everything),
    )
    flip = Flip(change, drop.count, units=units.name, of=len(units))
    if drop.count is None:
        return flip
    order, count, low, high = drop.order, drop.count, 0, None
    for _ in range(REFITS):
        left = np.flatnonzero(~np.isin(units.of_row, order[:count]))
        again = refit(left)
        if again is None:
            break
        happened = changed(average, again, change)
        if happened or not flip.happened:
            first = tuple(int(unit) for unit in order[: min(count, _SHOWN)])
            flip = replace(
                flip, dropped=count, estimate=again.estimate, stderr=again.stderr, happened=happened, first=first
            )
        if happened:
            high = count
        else:
            low = count
        if high is not None:
            if high - low <= 1:
                break
            count = (low + high) // 2
        else:
            order, count = _further(average, again, change, order, count, units, left)
    return flip


def _further(
    average: AverageEffect,
    again: AverageEffect,
    change: Change,
    order: np.ndarray,
    count: int,
    units: Units,
    left: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Return a longer order and count, by the influence of the rows that are left where it is known."""
    if again.influence is None or (change != "sign" and not again.stderr > 0):
        return order, math.ceil(_GROWTH * count)
    there = np.setdiff1d(np.arange(len(units)), order[:count])
    sizes = units.sums(np.ones(len(left)), left)[there]
    own = units.sums(again.influence, left)[there]
    direction = 1.0 if average.estimate >= 0 else -1.0
    if direction * again.estimate <= 0:  # the sign has changed already, the rest has not
        more = rows_to_drop(again.estimate, again.stderr, own, "significance", sizes)
    else:
        more = rows_to_drop(again.estimate, again.stderr, own, change, sizes)
    if more.count is None:
        return order, math.ceil(_GROWTH * count)
    return np.concatenate([order[:count], there[more.order]]), count + more.count


def changed(before: AverageEffect, after: AverageEffect, change: Change) -> bool:
    """Whether a conclusion differs between two estimates."""
    direction = 1.0 if before.estimate >= 0 else -1.0
    flipped = direction * after.estimate < 0
    if change == "sign":
        return flipped
    significant = abs(after.estimate) > Z * after.stderr
    if change == "sign and significance":
        return flipped and significant
    return significant != (abs(before.estimate) > Z * before.stderr)
