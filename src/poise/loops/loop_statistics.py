"""Statistics of labels whose drift a loop is watched for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

Statistic = Callable[[Any, Shaped[np.ndarray, " rows"]], float]
"""``statistic(X, labels)``, a number in [0, 1] for the bound to hold as it is."""


def label_share(label: Any) -> Statistic:
    """Return the statistic that is the fraction of rows with a label.

    Args:
        label: the label.
    """
    return lambda X, labels: float((np.asarray(labels) == label).mean())


def group_gap(group: Shaped[np.ndarray, " rows"], label: Any) -> Statistic:
    """Return the statistic that is the difference of the fractions of a label inside and outside a group.

    Args:
        group: one boolean for each row that the statistic will be asked about.
        label: the label.

    Returns:
        A statistic that is NaN where the group or its complement is empty.
    """
    inside = np.asarray(group, bool)

    def gap(X: Any, labels: Shaped[np.ndarray, " rows"]) -> float:
        if len(labels) != len(inside):
            raise ValueError(f"group must have one value for each of the {len(labels)} rows, got {len(inside)}")
        hit = np.asarray(labels) == label
        if inside.all() or not inside.any():
            return float("nan")
        return float(hit[inside].mean() - hit[~inside].mean())

    return gap
