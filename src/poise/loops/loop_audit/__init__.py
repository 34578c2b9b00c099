"""The audit of a feedback loop: how far a statistic drifts when a classifier's labels become training data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.loops.loop_statistics import Statistic
    from poise.report import Report


def audit_loop(
    model: Any,
    X: Any,
    y: Any,
    statistic: str | Statistic = "positive_rate",
    m: int = 50,
    k: int = 450,
    rounds: int = 25,
    *,
    n_start: int | None = None,
    tolerance: float = 0.02,
    seeds: int = 4,
    n_jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Feed a classifier's labels back into its training data, and report how far a statistic drifts and what stops it.

    The rows are divided into a start, a reserve of ``rounds * (m + k)``, and a test set. Four loops run for each seed:
    the labels are the likeliest ones; they are drawn from the probabilities; they are true (the control without
    feedback); and the likeliest ones with more human rows. Beside them the calibration error of the classifier is
    measured, also on training sets whose labels were shifted, which bounds the drift. Ctrl-C ends it with a report of
    what is there.

    Args:
        model: scikit-learn classifier; clones are fitted, it stays as it is.
        X: rows: array, sparse matrix or data frame.
        y: their true labels.
        statistic: ``"positive_rate"`` (the fraction of the last class in sorted order), or ``statistic(X, labels)``
            with values in [0, 1].
        m: rows with true labels that each round adds.
        k: rows with the classifier's labels that each round adds.
        rounds: number of rounds.
        n_start: rows at the start; by default 1000, or half of what the reserve leaves.
        tolerance: drift, in the unit of the statistic, that matters.
        seeds: repetitions, with other rows each.
        n_jobs: parallel loops, as in joblib.
        progress: called after each loop with those done and those in all; a progress bar by default.

    Returns:
        A report: drift by round within its bound, the loops side by side, calibration errors, human rows needed.

    Raises:
        ValueError: if there are too few rows (the largest possible ``rounds`` is named), or a number is out of range.

    References:
        Taori, Hashimoto, "Data feedback loops: model-driven amplification of dataset biases", ICML 2023,
        arXiv:2209.03942.
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.loops.loop_audit.measure import Plan, measure
    from poise.loops.loop_audit.report import loop_report

    plan = Plan(m, k, rounds, n_start, tolerance, seeds)
    return loop_report(measure(model, X, y, statistic, plan, n_jobs=n_jobs, progress=progress))
