"""Whether states lie in the convex hull of the training states."""

from __future__ import annotations

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float64

_MOST_POINTS = 500


class Hull:
    """The convex hull of points; of more than 500, that of a random sample and of the extremes of each coordinate.

    Args:
        points: of shape (points, n).
        seed: of the sample.
    """

    def __init__(self, points: Float64[np.ndarray, "points n"], seed: int) -> None:
        if len(points) > _MOST_POINTS:
            ends = {*points.argmin(0).tolist(), *points.argmax(0).tolist()}
            drawn = np.random.default_rng(seed).choice(len(points), _MOST_POINTS, replace=False)
            points = points[sorted({*drawn.tolist(), *ends})]
        self._centre, self._size = points.mean(0), np.maximum(points.std(0), 1e-12)
        # A state is a convex combination of points exactly if (state, 1) is a non-negative one of (point, 1).
        self._rays = np.vstack([((points - self._centre) / self._size).T, np.ones(len(points))])
        self._low, self._high = points.min(0), points.max(0)

    def contains(self, states: Float64[np.ndarray, "states n"]) -> Bool[np.ndarray, " states"]:
        """Return which states lie in the hull, to 1e-6 of the standard deviation of the points."""
        slack = 1e-9 * self._size
        inside = ((states >= self._low - slack) & (states <= self._high + slack)).all(1)
        for i in np.flatnonzero(inside):
            target = np.append((states[i] - self._centre) / self._size, 1.0)
            inside[i] = scipy.optimize.nnls(self._rays, target)[1] <= 1e-6
        return inside
