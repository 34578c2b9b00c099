"""Whether learned features help an effect learner, and whether evolving them adds anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal.inputs import CausalData, checked_data
from poise.causal.learners.averages import arm_nuisances
from poise.causal.nuisances.effect_nuisances import fit_nuisances
from poise.causal.nuisances.sub_learner import seeded_clone
from poise.causal.representation.evolved_features import EvolvedFeatures
from poise.evidence import compare_paired
from poise.report import Report, Table

_HELD_OUT = 0.5


def representation_report(
    features: EvolvedFeatures,
    learner: Any,
    X: Any,
    y: Any,
    *,
    treatment: Any,
    seeds: int | Sequence[int] = 5,
) -> Report:
    """Return whether an effect learner predicts better on evolved features than on raw ones or on those of one network.

    For each seed, features and learner are fitted on half of the rows. On the other half, outcome residuals are
    compared with treatment residuals times effects (the loss of the R-learner, whose nuisances are cross-fitted by
    linear models on all rows). The seeds are compared in pairs: the features with ``select=True`` against raw columns,
    and against ``select=False``. Small differences of this loss are large ones of the effects.

    Args:
        features: unfitted.
        learner: unfitted learner of effects, such as :class:`poise.causal.TLearner`.
        X: numeric covariates of shape (rows, columns), standardised.
        y: outcome of shape (rows,).
        treatment: two labels, of shape (rows,).
        seeds: how many (0, 1, ...), or the seeds themselves.

    Raises:
        ValueError: if inputs are bad; see :class:`EvolvedFeatures`.

    References:
        Burkhart and Ruiz (2022), arXiv:2205.10541; Nie and Wager (2021), arXiv:1712.04912.
    """
    data = checked_data(BaseEstimator(), X, y, treatment)
    if len(data.levels) != 2:
        raise ValueError(f"treatment must be binary, got {len(data.levels)} arms")
    numbers = list(range(seeds)) if isinstance(seeds, (int, np.integer)) else [int(seed) for seed in seeds]
    if not numbers:
        raise ValueError(f"seeds must be at least one, got {seeds!r}")
    line, logistic = make_pipeline(StandardScaler(), RidgeCV()), make_pipeline(StandardScaler(), LogisticRegression())
    n = arm_nuisances(data, fit_nuisances(data, line, logistic, random_state=numbers[0]), 1)
    outcome, residual = (n.y - n.eta)[0], (n.treated - n.pi)[0]
    runs: dict[str, list[tuple[float, float, float]]] = {"raw": [], "one network": [], "evolved": []}
    for seed in numbers:
        rows = np.arange(len(data))
        train, test = train_test_split(rows, test_size=_HELD_OUT, random_state=seed, stratify=data.arm)
        for name, own in runs.items():
            chosen = None if name == "raw" else clone(features).set_params(select=name == "evolved", random_state=seed)
            phi = _phi(chosen, data, train)
            fitted = seeded_clone(learner, np.random.RandomState(seed))
            fitted.fit(phi[train], data.y[train], treatment=data.levels[data.arm[train]])
            loss = float(np.mean((outcome - fitted.effect(phi) * residual)[test] ** 2))
            own.append((loss, *_predictability(phi, data, train, test)))
    losses = {name: [run[0] for run in own] for name, own in runs.items()}
    against_raw = compare_paired(losses["raw"], losses["evolved"])
    against_one = compare_paired(losses["one network"], losses["evolved"])
    table = Table(
        "Means over seeds",
        ["features", "loss of effects", "R2 of the outcome, linear", "AUC of the treatment, linear"],
        [[name, *np.mean(own, axis=0)] for name, own in runs.items()],
        "All on rows that neither features nor learners were fitted on.",
    )
    summary = (
        f"Against raw columns the evolved features change the loss of effects by {against_raw.difference:.3g}: "
        f"{against_raw.verdict}. Against one network without selection by {against_one.difference:.3g}: "
        f"{against_one.verdict}."
    )
    pairs = Table(
        "Evolved features, paired by seed",
        ["against", "difference of the loss", "low", "high", "verdict"],
        [
            [name, paired.difference, *paired.interval, paired.verdict]
            for name, paired in (("raw", against_raw), ("one network", against_one))
        ],
    )
    return Report(
        "Features for effects", summary, blocks=[table, pairs], meta={"seeds": numbers}, verdict=against_one.verdict
    )


def _phi(features: EvolvedFeatures | None, data: CausalData, train: np.ndarray) -> np.ndarray:
    if features is None:
        return data.x
    features.fit(data.x[train], data.y[train], treatment=data.arm[train])
    return features.transform(data.x)


def _predictability(phi: np.ndarray, data: CausalData, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    line = make_pipeline(StandardScaler(), RidgeCV()).fit(phi[train], data.y[train])
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(phi[train], data.arm[train])
    probability = logistic.predict_proba(phi[test])[:, 1]
    return float(r2_score(data.y[test], line.predict(phi[test]))), float(roc_auc_score(data.arm[test], probability))
