r"""Gaps to a model that was trained on everything at once, at every update of an increment.

.. math:: 1 - \frac{1}{J L} \sum_j \sum_i \frac{a_{j,i}}{r_j}

over increments :math:`j` and updates :math:`i`: 0 is as good as the joint model at every update, negative is better.
The *stability* gap takes the classes learned before the increment, the *plasticity* gap those of the increment, the
*continual knowledge* gap all classes so far; each with the joint model's accuracy on the same classes as
:math:`r_j`.

References: Harun and Kanan, "Overcoming the stability gap in continual learning", TMLR 2024, arXiv:2306.01904.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gaps(NamedTuple):
    """The three gaps of a sequence of increments."""

    stability: float
    plasticity: float
    continual_knowledge: float


def normalized_gap(actual: Sequence[ArrayLike], reference: Sequence[float]) -> float:
    """Return the gap.

    Args:
        actual: for each increment the accuracies after its updates (or after every so many: state the number).
        reference: for each increment the accuracy of the joint model, positive.

    Raises:
        ValueError: if there is no increment, lengths differ, an increment has no update, or a reference is not
            positive and finite.
    """
    if not len(actual) or len(actual) != len(reference):
        raise ValueError(f"reference must hold one accuracy for each increment, got {len(reference)} for {len(actual)}")
    ratios = []
    for j, (curve, joint) in enumerate(zip(actual, reference, strict=True)):
        if not (math.isfinite(joint) and joint > 0):
            raise ValueError(f"reference of increment {j} must be positive and finite, got {joint}")
        values = np.asarray(curve, dtype=float)
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"actual of increment {j} must hold at least one accuracy and only finite ones")
        ratios.append(values.ravel() / joint)
    return 1.0 - float(np.concatenate(ratios).mean())


def continual_gaps(
    old: Sequence[ArrayLike],
    new: Sequence[ArrayLike],
    everything: Sequence[ArrayLike],
    reference: Sequence[tuple[float, float, float]],
) -> Gaps:
    """Return the stability, the plasticity and the continual knowledge gap.

    Args:
        old: for each increment the accuracies on the classes before it, after its updates.
        new: on the classes of the increment.
        everything: on all classes so far.
        reference: for each increment the joint model's accuracies on the same three.

    Raises:
        ValueError: as :func:`normalized_gap`.
    """
    columns = list(zip(*reference, strict=True)) if reference else [(), (), ()]
    return Gaps(*(normalized_gap(a, r) for a, r in zip((old, new, everything), columns, strict=True)))
