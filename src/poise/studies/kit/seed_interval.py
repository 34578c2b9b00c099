"""The interval in which a mean over all seeds lies, from the seeds that were run."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[float, float]


def seed_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean over seeds.

    Of numbers it is the interval of Student's t that ``poise.evidence.compare_paired`` gives: infinite for one seed or
    an infinite value, and of width 0 if all seeds have the same value. Of yes/no outcomes (``bool``) it is the exact
    interval of their fraction, which is never of width 0: four of four are 0.40 to 1.

    Args:
        values: one number or one ``bool`` for each seed, at least one.
    """
    if all(isinstance(value, bool) for value in values):
        return fraction_interval(values)
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return -math.inf, math.inf
    # Here and below: the listing of studies reads rules' words and needs no statistics.
    from poise.evidence import compare_paired

    return compare_paired([0.0] * len(values), list(values), lower_is_better=False).interval


def fraction_interval(outcomes: Sequence[float]) -> Interval:
    """Return the exact 95 % interval (Clopper and Pearson) of the fraction of seeds with a yes.

    Args:
        outcomes: one for each seed, true or false.
    """
    from poise.evidence import clopper_pearson

    return clopper_pearson(sum(map(bool, outcomes)), len(outcomes))
