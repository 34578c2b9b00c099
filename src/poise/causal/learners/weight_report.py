"""Where the weight of a pseudo-outcome regression lies, and what inverse-variance weights change."""

from __future__ import annotations

import itertools

import numpy as np
from sklearn.utils.validation import check_is_fitted

from poise.causal.learners.averages import arm_nuisances
from poise.causal.learners.pseudo_outcome_learner import PseudoOutcomeLearner
from poise.causal.learners.pseudo_outcomes import doubly_robust
from poise.evidence import effective_sample_size
from poise.evidence.overlap import rows_clipped
from poise.report import Report, Table
from poise.tools.number import number

_EDGES = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0])
_TOP = 0.01


def weight_report(learner: PseudoOutcomeLearner) -> Report:
    """Return which rows decide the effects of a fitted learner.

    The report has the share of the weight by propensity, the effective sample size, the share of the 1 % of rows with
    most weight, clipped rows, and the variance of the doubly robust pseudo-outcome without and with inverse-variance
    weights.

    Args:
        learner: fitted; with several arms, its first one against the control is shown.

    Raises:
        sklearn.exceptions.NotFittedError: before ``fit``.
        TypeError: if ``learner`` is another estimator.
    """
    if not isinstance(learner, PseudoOutcomeLearner):
        raise TypeError(f"learner must be a PseudoOutcomeLearner, got {type(learner).__name__}")
    check_is_fitted(learner)
    n = arm_nuisances(learner._data, learner._nuisances, 1)
    pi, pseudo = n.pi.mean(0), doubly_robust(n).mean(0)
    weight = learner.weights_ if learner.weights_.ndim == 1 else learner.weights_[:, 0]
    nu = n.nu.mean(0)
    unweighted, weighted = (_variance_of_mean(pseudo, w) for w in (np.ones_like(nu), nu))
    size, rows = effective_sample_size(weight), len(weight)
    top = np.sort(weight)[-max(1, round(_TOP * rows)) :].sum() / weight.sum()
    summary = (
        f"{number(size, 3)} of {rows} rows count (effective sample size); {rows_clipped(learner.n_clipped_)}. The 1 % "
        f"of rows with most weight have {100 * top:.3g} % of it."
    )
    facts: list[list[object]] = [
        ["rows", rows],
        ["effective sample size", size],
        ["rows with a clipped propensity", learner.n_clipped_],
        ["smallest propensity", float(pi.min())],
        ["largest propensity", float(pi.max())],
        ["part of the weight in 1 % of rows", float(top)],
        ["variance of the mean without over with weights", unweighted / weighted],
    ]
    meta = {"rows": rows, "clipped": learner.n_clipped_, "effective_sample_size": size, "pseudo": learner.pseudo}
    return Report(
        "Weights", summary, blocks=[Table("Numbers", ["quantity", "value"], facts), _bins(pi, weight)], meta=meta
    )


def _variance_of_mean(pseudo: np.ndarray, weight: np.ndarray) -> float:
    mean = np.average(pseudo, weights=weight)
    return float(np.sum((weight * (pseudo - mean)) ** 2) / weight.sum() ** 2)


def _bins(pi: np.ndarray, weight: np.ndarray) -> Table:
    place = np.clip(np.searchsorted(_EDGES, pi, side="right") - 1, 0, len(_EDGES) - 2)
    rows = [
        [f"{low:g} to {high:g}", int((place == i).sum()), 100 * float((place == i).mean()), 100 * float(share)]
        for i, (low, high) in enumerate(itertools.pairwise(_EDGES))
        for share in [weight[place == i].sum() / weight.sum()]
    ]
    return Table("Weight by propensity", ["propensity", "rows", "% of rows", "% of the weight"], rows)
