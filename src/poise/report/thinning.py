"""Fewer points of a curve, with its spikes kept."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def thin(y: np.ndarray, limit: int) -> np.ndarray:
    """Return sorted indices of at most ``limit`` points that draw the same curve.

    The points are cut into buckets of equal length; each keeps its lowest, its highest and its first non-finite
    point, so a spike of one step and a single NaN both stay visible. First and last point are kept.

    Args:
        y: values in drawing order.
        limit: largest number of indices, at least 8.

    Raises:
        ValueError: if ``limit`` is below 8.
    """
    if limit < 8:
        raise ValueError(f"limit must be at least 8, got {limit}")
    if len(y) <= limit:
        return np.arange(len(y))
    finite = np.isfinite(y)
    per_bucket = 2 if finite.all() else 3
    edges = np.linspace(0, len(y), (limit - 2) // per_bucket + 1).astype(int)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    keep = {0, len(y) - 1}
    for start, stop in pairwise(edges):
        keep |= {start + int(low[start:stop].argmin()), start + int(high[start:stop].argmax())}
        if not finite[start:stop].all():
            keep.add(start + int(finite[start:stop].argmin()))
    return np.array(sorted(keep))


def spread(y: np.ndarray, count: int) -> np.ndarray:
    """Return sorted indices of at most ``count + 2`` points, evenly spread, with the lowest and the highest."""
    if len(y) <= count:
        return np.arange(len(y))
    keep = set(np.linspace(0, len(y) - 1, count).astype(int).tolist())
    if y.dtype != object and np.isfinite(y).any():
        finite = np.isfinite(y)
        keep |= {int(np.where(finite, y, np.inf).argmin()), int(np.where(finite, y, -np.inf).argmax())}
    return np.array(sorted(keep))
