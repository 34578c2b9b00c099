"""The audit of retraining: how many predictions change when a model is trained again, and because of what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.report import Report


def audit_retraining(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    X_test: Any,
    n_retrain: int = 20,
    leave_out: float = 0.01,
    n_bags: int = 200,
    tolerance: float = 0.1,
    cost_per_flip: float | None = None,
    allow_nondeterministic: bool = False,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Train a model again, count the decisions that flip, and report their cause and a remedy with a guarantee.

    It is trained once as a base; with the same seed again, which must change nothing; ``n_retrain`` times with other
    seeds; as often with the rows in another order; and as often with some rows left out. Then an average over bags of
    the same model is trained: it tells, without further training, which rows carry the changes, and is itself
    retrained to show how much it flips. Ctrl-C ends it with a report of what is there.

    Args:
        estimator: scikit-learn classifier or regressor; clones are fitted.
        X: training rows.
        y: labels or targets.
        X_test: rows whose predictions are compared.
        n_retrain: trainings of each kind.
        leave_out: fraction of the rows that are left out.
        n_bags: members of the average.
        tolerance: for regressors: a change of at most so many standard deviations of ``y`` is none.
        cost_per_flip: in a unit of yours; the report multiplies it.
        allow_nondeterministic: take a difference between two trainings with the same seed as noise floor, instead of
            raising.
        seed: of the base; the others are derived from it.
        n_jobs: parallel trainings, as in joblib.
        folder: where finished trainings are kept, so that a call that was stopped continues.
        progress: called after each training with those done and those in all; a progress bar by default.

    Returns:
        A report: flips by cause with intervals, rows that carry half of the change, churn of each test row, the average
        over bags beside it, and what is guaranteed.

    Raises:
        NonDeterministicTraining: if two trainings with the same seed differ.
        ValueError: if a number is out of range, or lengths disagree.

    References:
        Soloff, Barber, Willett, "Bagging provides assumption-free stability", JMLR 2024, arXiv:2301.12600.
    """
    # Imported here: listings read the rules of this folder, and need no measurements.
    from poise.sensitivity.retraining_audit.measure import Plan, measure
    from poise.sensitivity.retraining_audit.report import retraining_report

    plan = Plan(n_retrain, leave_out, n_bags, tolerance, cost_per_flip, allow_nondeterministic, seed)
    facts = measure(estimator, X, y, X_test, plan, n_jobs=n_jobs, folder=folder, progress=progress)
    return retraining_report(facts)
