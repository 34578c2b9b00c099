"""How the audit of an effect measures: seeds, few rows, overlap, other learners, a constant effect."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal.average_effect import AverageEffect, ratio_average
from poise.causal.effect_audit.facts import ConstantComparison, EffectFacts, Overlap
from poise.causal.effect_audit.few_rows import CHANGES
from poise.causal.effect_audit.fitter import FittedEffect, Fitter, Rows, fitter_of
from poise.causal.effect_audit.forwarded import forwarded_sensitivity
from poise.causal.effect_audit.refits import REFITS, Units, few_rows_that_change
from poise.causal.inputs import CausalData, checked_data
from poise.causal.learners.averages import arm_nuisances, doubly_robust_average, overlap_average
from poise.causal.learners.pseudo_outcome_learner import PseudoOutcomeLearner
from poise.causal.nuisances.effect_nuisances import EffectNuisances, fit_nuisances
from poise.causal.nuisances.folds import stratified_folds
from poise.causal.simple_estimates import least_squares
from poise.evidence import effective_sample_size
from poise.tools.number import number
from poise.tools.progress_bar import fraction_bar

_FOLDS = 5
_FEWEST = 10
_CLIP = 0.01
_TOP = 0.01


def measure(
    estimator: Any,
    X: Any,
    y: Any,
    treatment: Any,
    sample_weight: Any,
    groups: Any,
    seeds: int | Sequence[int],
    progress: bool | None,
) -> EffectFacts:
    """Measure everything; see :func:`poise.causal.audit_effect` for the arguments."""
    start = time.perf_counter()
    numbers = tuple(range(seeds)) if isinstance(seeds, (int, np.integer)) else tuple(int(seed) for seed in seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be at least one, and different, got {seeds!r}")
    control = getattr(last_step(estimator), "control", None)
    data = checked_data(BaseEstimator(), X, y, treatment, sample_weight, groups, control)
    if len(data.levels) != 2:
        raise ValueError(f"treatment must have two arms, got {len(data.levels)}: audit each against the control alone")
    control, treated = (level.item() if isinstance(level, np.generic) else level for level in data.levels)
    rows = Rows(X, data.y, data.levels[data.arm], data.weight, data.groups)
    audit = _Audit(fitter_of(estimator, treated, control), rows, data, numbers)
    base = audit.fit(rows, numbers[0])
    facts = EffectFacts(
        _name(estimator), len(rows), base.average, numbers[:1],
        np.array([base.average.estimate]), np.array([base.average.stderr]), not_checked=dict(audit.waiting),
    )  # fmt: skip
    each = time.perf_counter() - start
    planned = len(numbers) + 3 * REFITS + _FOLDS
    words = f"at most {planned} fits of about {number(each, 2)} s"
    with fraction_bar("effect audit", progress) as report:
        for done, (name, stage) in enumerate(audit.stages(base)):
            report(done / len(audit.waiting), f"{words}; {name}")
            try:
                facts = replace(stage(facts), not_checked=_without(facts.not_checked, name, audit.reasons))
            except KeyboardInterrupt:
                audit.interrupted = True
            if audit.interrupted:
                break  # the report says what was not checked
    return replace(facts, fits=audit.fits, seconds=time.perf_counter() - start)


class _Audit:
    """One audit: what is measured, one stage after the other, each of which adds to the facts."""

    waiting = dict.fromkeys(
        (
            "simple estimates",
            "overlap",
            "seeds",
            "few rows",
            "other learners",
            "a constant effect",
            "sensitivity analysis",
        ),
        "the audit was interrupted before",
    )

    def __init__(self, fitter: Fitter, rows: Rows, data: CausalData, seeds: tuple[int, ...]) -> None:
        self._fitter, self._rows, self._data, self._seeds = fitter, rows, data, seeds
        self.fits = 0
        self.reasons: dict[str, str] = {}
        self.interrupted = False
        self._nuisances: EffectNuisances | None = None
        self._clip = _CLIP

    def fit(self, rows: Rows, seed: int) -> FittedEffect:
        """Fit the user's estimator."""
        self.fits += 1
        return self._fitter(rows, seed)

    def stages(self, base: FittedEffect) -> list[tuple[str, Callable[[EffectFacts], EffectFacts]]]:
        """Return the stages with their names, the cheap ones first."""
        found = (
            self._simple,
            lambda facts: self._overlap(facts, base),
            self._over_seeds,
            lambda facts: self._few_rows(facts, base),
            self._learners,
            lambda facts: self._constant(facts, base),
            lambda facts: self._sensitivity(facts, base),
        )
        return list(zip(self.waiting, found, strict=True))

    def nuisances(self, base: FittedEffect) -> EffectNuisances:
        """Return the estimator's own nuisances, or those of default learners."""
        if self._nuisances is None:
            own = last_step(base.fitted)
            if isinstance(own, PseudoOutcomeLearner):
                self._nuisances, self._clip = own._nuisances, own.clip
            else:
                self._nuisances = self._fit_nuisances(None, None)
        return self._nuisances

    def _fit_nuisances(self, outcome: Any, propensity: Any) -> EffectNuisances:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # clipped rows are in the report
            return fit_nuisances(self._data, outcome, propensity, clip=_CLIP, random_state=self._seeds[0])

    def _simple(self, facts: EffectFacts) -> EffectFacts:
        data = self._data
        controls = {
            "difference of means": _difference_of_means(data),
            "linear regression on treatment and covariates": least_squares(data),
        }
        return replace(facts, controls=controls)

    def _overlap(self, facts: EffectFacts, base: FittedEffect) -> EffectFacts:
        found, data = self.nuisances(base), self._data
        pi = found.propensity.mean(0)
        inverse = 1 / pi[np.arange(len(data)), data.arm]
        inverse = inverse if data.weight is None else inverse * data.weight
        largest = np.sort(inverse)[-max(1, round(_TOP * len(data))) :]
        overlap = Overlap(
            effective_sample_size(inverse), found.n_clipped, self._clip, float(pi[:, 1].min()), float(pi[:, 1].max()),
            float(largest.sum() / inverse.sum()),
        )  # fmt: skip
        averages = {
            "doubly robust, all rows": doubly_robust_average(data, found),
            "doubly robust, overlap weights": overlap_average(data, found),
        }
        return replace(facts, overlap=overlap, controls={**facts.controls, **averages})

    def _over_seeds(self, facts: EffectFacts) -> EffectFacts:
        averages = [facts.average]
        for seed in self._seeds[1:]:
            try:
                averages.append(self.fit(self._rows, seed).average)
            except KeyboardInterrupt:
                self.interrupted = True
                self.reasons["all seeds"] = f"the audit was interrupted after {len(averages)} of {len(self._seeds)}"
                break
        if len(self._seeds) == 1:
            self.reasons["seeds"] = "one seed was asked for"
        return replace(
            facts,
            seeds=self._seeds[: len(averages)],
            by_seed=np.array([average.estimate for average in averages]),
            stderr_by_seed=np.array([average.stderr for average in averages]),
        )

    def _few_rows(self, facts: EffectFacts, base: FittedEffect) -> EffectFacts:
        influence, stderr = base.average.influence, base.average.stderr
        if influence is None:
            influence = doubly_robust_average(self._data, self.nuisances(base)).influence
            assert influence is not None
        changes = CHANGES if stderr > 0 else CHANGES[:1]
        if not stderr > 0:
            self.reasons["few rows that change the significance"] = "the estimator gives no standard error"
        groups = self._data.groups
        units = Units(np.arange(len(self._data))) if groups is None else Units(groups, "groups")
        for change in changes:
            flip = few_rows_that_change(change, base.average, influence, units, self._without)
            facts = replace(facts, flips=(*facts.flips, flip))
        return facts

    def _without(self, left: np.ndarray) -> AverageEffect | None:
        if min(np.bincount(self._data.arm[left], minlength=2)) < _FEWEST:
            return None
        return self.fit(self._rows.take(left), self._seeds[0]).average

    def _learners(self, facts: EffectFacts) -> EffectFacts:
        found = {}
        for name, (outcome, propensity) in _learner_pairs().items():
            found[name] = doubly_robust_average(self._data, self._fit_nuisances(outcome, propensity))
        return replace(facts, learners=found)

    def _constant(self, facts: EffectFacts, base: FittedEffect) -> EffectFacts:
        if base.effect is None:
            self.reasons["a constant effect"] = "the estimator gives no effects of rows"
            return facts
        n = arm_nuisances(self._data, self.nuisances(base), 1)
        outcome, treatment = (n.y - n.eta).mean(0), (n.treated - n.pi).mean(0)
        fold = stratified_folds(self._data, _FOLDS, np.random.RandomState(self._seeds[0]))
        weight = np.ones(len(fold)) if self._data.weight is None else self._data.weight
        varied, constant = np.empty(len(fold)), np.empty(len(fold))
        for k in range(_FOLDS):
            train, held_out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            fitted = self.fit(self._rows.take(train), self._seeds[0])
            assert fitted.effect is not None
            varied[held_out] = fitted.effect(self._rows.take(held_out).X)
            moments = [np.sum((weight * treatment * other)[train]) for other in (outcome, treatment)]
            constant[held_out] = moments[0] / moments[1]
        losses = [(outcome - effects * treatment) ** 2 for effects in (varied, constant)]
        difference = ratio_average(losses[0] - losses[1], np.ones(len(fold)), self._data.weight, self._data.groups)
        means = [float(np.average(loss, weights=weight)) for loss in losses]
        comparison = ConstantComparison(
            means[0], means[1], difference.estimate, difference.stderr, float(np.std(varied))
        )
        return replace(facts, constant=comparison)

    def _sensitivity(self, facts: EffectFacts, base: FittedEffect) -> EffectFacts:
        forwarded, failed = forwarded_sensitivity(base.fitted, facts.average.arm)
        self.reasons |= failed
        if not forwarded and not failed:
            self.reasons["sensitivity analysis"] = (
                "unmeasured confounding: the object has no robustness_value (EconML) or sensitivity_analysis (DoubleML)"
            )
        return replace(facts, forwarded=forwarded)


def _without(waiting: Any, name: str, reasons: dict[str, str]) -> dict[str, str]:
    return {**{key: why for key, why in waiting.items() if key != name}, **reasons}


def last_step(estimator: Any) -> Any:
    """Return the last step of a pipeline, and anything else as it is."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _name(estimator: Any) -> str:
    own = last_step(estimator)
    return str(getattr(own, "__name__", type(own).__name__))


def _learner_pairs() -> dict[str, tuple[Any, Any]]:
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    forests = [kind(100, min_samples_leaf=5) for kind in (RandomForestRegressor, RandomForestClassifier)]
    return {
        "linear": (LinearRegression(), logistic),
        "boosted trees": (None, None),
        "forest": (forests[0], forests[1]),
    }


def _difference_of_means(data: CausalData) -> AverageEffect:
    weight = np.ones(len(data)) if data.weight is None else data.weight
    parts = []
    for arm in (0, 1):
        rows = (data.arm == arm).astype(float)
        parts.append(ratio_average(data.y * rows, rows, weight, data.groups))
    assert parts[0].influence is not None
    assert parts[1].influence is not None
    estimate = parts[1].estimate - parts[0].estimate
    both = ratio_average(parts[1].influence - parts[0].influence, np.ones(len(data)), None, data.groups)
    return AverageEffect(estimate, both.stderr)
