"""Numbers over seeds in words, the same in all studies."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from poise.evidence import PairedComparison


def listed(values: Iterable[float], form: str = ".3f", infinite: str = "infinite") -> str:
    """Return numbers with commas between them.

    Args:
        values: the numbers, often one a seed.
        form: format of each.
        infinite: what stands in the place of infinity.
    """
    return ", ".join(infinite if math.isinf(value) else f"{value:{form}}" for value in values)


def interval(low: float, high: float, form: str = "+.3f") -> str:
    """Return ``"95 % interval -0.100 to +0.200"``."""
    return f"95 % interval {low:{form}} to {high:{form}}"


def difference(paired: PairedComparison, form: str = "+.3f", unit: str = "") -> str:
    """Return the mean difference of a paired comparison with its unit and, in brackets, its interval."""
    size = f"{paired.difference:{form}}{' ' if unit else ''}{unit}"
    return f"{size} ({interval(*paired.interval, form)})"


def span(values: ArrayLike, form: str = ".3f") -> str:
    """Return the lowest and the highest value, as in ``"0.100 to 0.200"``."""
    return f"{np.min(values):{form}} to {np.max(values):{form}}"


def mean_and_span(values: ArrayLike, form: str = ".3f") -> str:
    """Return the mean and, in brackets, the lowest and the highest value."""
    return f"{np.asarray(values, dtype=float).mean():{form}} ({span(values, form)})"
