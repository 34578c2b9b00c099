"""How far served weights are behind the trained ones on new data."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float

from poise.continual.evaluation.history import AccuracyHistory

LAG = 0.1


def averaging_lag(served: AccuracyHistory, trained: AccuracyHistory) -> Float[np.ndarray, " tasks"]:
    """Return by task the score of served minus trained weights on it, over the second half of its training.

    Args:
        served: history of the averaged weights.
        trained: of the trained ones, from the same evaluator.

    Returns:
        NaN for a task that was not trained.

    Raises:
        ValueError: if the histories have different rows.

    Warns:
        UserWarning: if an average is behind by more than 0.1: its memory is too long for the task.
    """
    if not np.array_equal(served.steps, trained.steps) or served.names != trained.names:
        raise ValueError("served and trained must be histories of the same updates and tasks")
    lags = np.full(len(served.names), np.nan)
    for i in range(len(lags)):
        rows = np.flatnonzero(trained.trained == i)
        if len(rows):
            late = rows[len(rows) // 2 :]
            lags[i] = float(np.mean(served.accuracy[late, i] - trained.accuracy[late, i]))
    behind = [served.names[i] for i in np.flatnonzero(lags < -LAG)]
    if behind:
        warnings.warn(
            f"the served weights are behind the trained ones by up to {-np.nanmin(lags):.2f} on {behind}: take a "
            "smaller decay, or train longer on each task",
            UserWarning,
            stacklevel=2,
        )
    return lags
