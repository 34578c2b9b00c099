"""An average effect with its influence function: standard error, interval, p-value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from poise.tools.number import number


@dataclass(frozen=True, slots=True, eq=False)
class AverageEffect:
    """An average effect.

    Args:
        estimate: the average.
        stderr: its standard error, from the influence function; NaN where the estimator has none.
        target: the people whose average it is: ``"population"``, or ``"overlap"`` for weights that are largest where
            both arms are likely.
        arm: label of the arm.
        control: label of the arm it is compared with.
        influence: what each row adds to the estimate, of mean 0; ``None`` where the estimator has none.
    """

    estimate: float
    stderr: float
    target: str = "population"
    arm: Any = 1
    control: Any = 0
    influence: Float[np.ndarray, " rows"] | None = field(default=None, repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.conf_int()

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of no effect; ``None``, undefined, where there is no standard error above 0."""
        if not self.stderr > 0:
            return None
        return float(2 * stats.norm.sf(abs(self.estimate) / self.stderr))

    def conf_int(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return a normal interval.

        Args:
            alpha: probability outside of it.

        Raises:
            ValueError: if ``alpha`` is outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
        half = float(stats.norm.isf(alpha / 2)) * self.stderr
        return self.estimate - half, self.estimate + half

    def __str__(self) -> str:
        if math.isnan(self.stderr):
            return f"{number(self.estimate)} (no standard error)"
        low, high = self.interval
        return f"{number(self.estimate)} [{number(low)}, {number(high)}]"


def ratio_average(
    numerator: Float[np.ndarray, " rows"],
    denominator: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"] | None = None,
    groups: np.ndarray | None = None,
    **labels: Any,
) -> AverageEffect:
    """Return the average that solves mean(weight (numerator - average denominator)) = 0.

    Args:
        numerator: one value a row.
        denominator: the same; 1 for a plain mean.
        weight: of rows; ``None`` where all count the same.
        groups: number of each row's group: standard errors are then those of independent groups.
        **labels: ``target``, ``arm`` and ``control``.

    Raises:
        ValueError: if the denominator sums to 0.
    """
    w = np.ones(len(numerator)) if weight is None else weight
    total = float(np.sum(w * denominator))
    if total == 0:
        raise ValueError("no row has a weight above 0: there is no overlap between the arms")
    estimate = float(np.sum(w * numerator)) / total
    influence = w * (numerator - estimate * denominator) * (len(w) / total)
    return AverageEffect(estimate, standard_error(influence, groups), influence=influence, **labels)


def standard_error(influence: Float[np.ndarray, " rows"], groups: np.ndarray | None = None) -> float:
    """Return the standard error of a mean, of independent rows or of independent groups of rows.

    Args:
        influence: of mean 0.
        groups: number of each row's group.
    """
    n = len(influence)
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    count = len(sums)
    return math.sqrt(float(np.sum(sums**2)) * count / (count - 1)) / n if count > 1 else math.nan
