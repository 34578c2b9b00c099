"""The audit of an effect estimate: one call that says on what it hangs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.report import Report


def audit_effect(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    treatment: Any,
    sample_weight: Any = None,
    groups: Any = None,
    seeds: int | Sequence[int] = 20,
    progress: bool | None = None,
) -> Report:
    """Return on what an average effect hangs: seeds, a few rows, rows without a counterpart, the choice of learners.

    The report has the estimate beside simple ones; how far seeds move it, in standard errors; how few rows have to be
    left out for its sign and for its significance to change (found by influence functions, checked by refitting without
    them); effective sample size and clipped rows; the same average with other learners; whether one effect for all
    predicts better than effects that vary; and what the object's own sensitivity analysis says. What could not be
    checked is listed. The estimator is fitted about ``seeds + 15`` times; Ctrl-C ends the audit with what is there.

    Args:
        estimator: anything with ``fit(X, y, treatment=...)`` and ``ate()``, alone or last in a pipeline; an EconML
            estimator; or a function ``estimator(X, y, treatment, seed)`` that returns a number, a pair of a number and
            its standard error, or a fitted object with ``ate()`` or with ``coef`` and ``se`` (DoubleML). It is copied;
            yours stays unfitted.
        X: numeric covariates of shape (rows, columns): an array, or a pandas, Polars or Arrow table.
        y: outcome of shape (rows,).
        treatment: labels of two arms of shape (rows,); the smaller one is the control.
        sample_weight: weights of rows, handed to ``fit``.
        groups: labels of groups of rows that are not independent, handed to ``fit``; groups are then left out whole.
        seeds: how many seeds (0, 1, ...), or the seeds themselves.
        progress: whether to show a progress bar with the cost; by default on a terminal.

    Raises:
        TypeError: if ``estimator`` is nothing of the kind.
        ValueError: if the treatment has not two arms, ``y`` is constant, something is not finite, or weights or groups
            are given to an estimator that takes none.

    References:
        Broderick, Giordano and Meager (2020), arXiv:2011.14999; Fisher (2024), arXiv:2307.09700; Chernozhukov et al.
        (2018), arXiv:1608.00060.

    Example:
        >>> import numpy as np
        >>> from sklearn.linear_model import LinearRegression, LogisticRegression
        >>> from poise.causal import DRLearner
        >>> rng = np.random.default_rng(0)
        >>> X, t = rng.normal(size=(300, 2)), rng.integers(2, size=300)
        >>> y = X[:, 0] + t + rng.normal(size=300)
        >>> line = LinearRegression()
        >>> learner = DRLearner(outcome=line, propensity=LogisticRegression(), effect_model=line)
        >>> audit_effect(learner, X, y, treatment=t, seeds=3).verdict
        'stable'
    """
    # The rules of this folder are read by listings, which need none of what measures.
    from poise.causal.effect_audit.measure import measure
    from poise.causal.effect_audit.report import effect_report

    return effect_report(measure(estimator, X, y, treatment, sample_weight, groups, seeds, progress))
