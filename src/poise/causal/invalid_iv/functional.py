"""Functionals of nuisances, each with the sets that suffice: what a choice between learners needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator

from poise.causal.inputs import CausalData
from poise.causal.invalid_iv.influence import SUFFICIENT_SETS, influence
from poise.causal.invalid_iv.invalid_iv_ate import checked_instrument, instrument_folds, is_one_sided
from poise.causal.invalid_iv.nuisances import Instrumented, floored_relevance, linear_basis
from poise.causal.nuisances.effect_nuisances import with_arms
from poise.causal.nuisances.folds import stratified_folds
from poise.causal.nuisances.propensity import clip_propensity, predicted_arms
from poise.causal.nuisances.store import NuisanceStore

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of learning.

    Args:
        name: a word for tables.
        regressor: learner of means.
        classifier: learner of probabilities.
    """

    name: str
    regressor: BaseEstimator
    classifier: BaseEstimator


@dataclass(frozen=True, slots=True, eq=False)
class FittedNuisance:
    """A nuisance by one candidate.

    Args:
        values: arrays of shape (rows,) by name.
        clipped: part of the rows in which something was moved away from 0 (or from 1).
        largest_weight: part of all weight that one row has; 0 for nuisances that nothing is divided by.
    """

    values: Values
    clipped: float = 0.0
    largest_weight: float = 0.0


class Functional(Protocol):
    """An average that is the mean of an influence function of nuisances."""

    nuisances: tuple[str, ...]
    sufficient_sets: tuple[frozenset[str], ...]

    def prepare(self, data: CausalData, instrument: Any, cv: int, seeds: Any, generator: Any) -> Any:
        """Return the rows with the store of their nuisances."""

    def fit_nuisance(self, rows: Any, name: str, candidate: Candidate) -> FittedNuisance:
        """Return one nuisance of all rows, cross-fitted by a candidate."""

    def moment(self, rows: Any, values: Values) -> Float[np.ndarray, " rows"]:
        """Return the uncentred influence function of the rows, from the values of all nuisances."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows with the store of their nuisances."""

    data: CausalData
    store: NuisanceStore


class DoublyRobustAverage:
    """The average effect without unmeasured confounding: the propensity ``pi`` or the mean outcome ``mu`` suffices.

    Args:
        clip: smallest propensity.
    """

    nuisances: tuple[str, ...] = ("pi", "mu")
    sufficient_sets: tuple[frozenset[str], ...] = (frozenset({"pi"}), frozenset({"mu"}))

    def __init__(self, clip: float = 0.01) -> None:
        self.clip = clip

    def prepare(self, data: CausalData, instrument: Any, cv: int, seeds: Any, generator: Any) -> _Rows:
        """Return the rows with the store of their nuisances."""
        if instrument is not None:
            raise ValueError("instrument must be None for the doubly robust average")
        if len(data.levels) != 2:
            raise ValueError(f"treatment must be binary, got {len(data.levels)} arms")
        return _Rows(data, NuisanceStore(data.x, stratified_folds(data, cv, generator), data.weight, seeds))

    def fit_nuisance(self, rows: _Rows, name: str, candidate: Candidate) -> FittedNuisance:
        """Return the propensity, or the mean outcomes of both arms."""
        data, store = rows.data, rows.store
        if name == "pi":
            read = predicted_arms(2)
            raw = store.predict(f"pi {candidate.name}", candidate.classifier, data.arm, prediction=read)
            found = clip_propensity(raw, self.clip)
            weight = 1 / found.values[np.arange(len(data)), data.arm]
            return FittedNuisance(
                {"pi": found.values[:, 1]}, float(found.clipped.mean()), float(weight.max() / weight.sum())
            )
        inputs = with_arms(data.x, data.arm, 2)
        at = [with_arms(data.x, np.full(len(data), arm), 2) for arm in (0, 1)]
        mu0, mu1 = store.predict(f"mu {candidate.name}", candidate.regressor, data.y, inputs=inputs, at=at)
        return FittedNuisance({"mu0": mu0, "mu1": mu1})

    def moment(self, rows: _Rows, values: Values) -> Float[np.ndarray, " rows"]:
        """Return the doubly robust pseudo-outcome."""
        a, y, pi = rows.data.arm, rows.data.y, values["pi"]
        mu1, mu0 = values["mu1"], values["mu0"]
        found: np.ndarray = a / pi * (y - mu1) - (1 - a) / (1 - pi) * (y - mu0) + mu1 - mu0
        return found


class InvalidIVAverage:
    """The average effect with an invalid instrument: see :mod:`poise.causal.invalid_iv.influence` for its nuisances.

    The effect ``beta``, the outcome ``theta`` and the confounding ``omega`` of a candidate are made with the other
    nuisances of the same candidate.

    Args:
        clip: smallest probability.
    """

    nuisances: tuple[str, ...] = ("pi", "mu", "beta", "theta", "omega")
    sufficient_sets: tuple[frozenset[str], ...] = SUFFICIENT_SETS

    def __init__(self, clip: float = 0.01) -> None:
        self.clip = clip

    def prepare(self, data: CausalData, instrument: Any, cv: int, seeds: Any, generator: Any) -> Instrumented:
        """Return the rows with the store of their nuisances."""
        z = checked_instrument(data, instrument)
        store = NuisanceStore(data.x, instrument_folds(data, z, cv, generator), data.weight, seeds)
        return Instrumented(data, data.arm.astype(float), z, store, self.clip, is_one_sided(data.arm, z))

    def fit_nuisance(self, rows: Instrumented, name: str, candidate: Candidate) -> FittedNuisance:
        """Return one nuisance of the rows."""
        pi = rows.pi(candidate.name, candidate.classifier)
        if name == "pi":
            weight = 1 / np.where(rows.z == 1, pi.values, 1 - pi.values)
            return FittedNuisance({"pi": pi.values}, float(pi.outside.mean()), float(weight.max() / weight.sum()))
        mu1, mu0 = rows.mu(candidate.name, candidate.classifier)
        mu = rows.own(mu1.values, mu0.values)
        if name == "mu":
            d = floored_relevance(mu1.values, mu0.values)
            weight = 1 / np.abs(d.values)
            values = {"mu": mu, "d": d.values}
            return FittedNuisance(values, float(d.outside.mean()), float(weight.max() / weight.sum()))
        m = rows.m(candidate.name, candidate.regressor)
        beta = rows.beta(pi.values, mu, m, linear_basis)[0]
        if name == "beta":
            return FittedNuisance({"beta": beta})
        if name == "theta":
            return FittedNuisance({"theta": m - beta * mu})
        return FittedNuisance({"omega": rows.omega(candidate.name, candidate.regressor, mu, m, beta)})

    def moment(self, rows: Instrumented, values: Values) -> Float[np.ndarray, " rows"]:
        """Return the uncentred influence function."""
        return influence(rows.data.y, rows.a, rows.z, **values)
