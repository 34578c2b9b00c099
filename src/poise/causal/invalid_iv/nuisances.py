"""The nuisances of an average effect with an invalid instrument, cross-fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator

from poise.causal.inputs import CausalData
from poise.causal.invalid_iv.influence import relevance
from poise.causal.nuisances.propensity import predicted_arms
from poise.causal.nuisances.store import NuisanceStore
from poise.causal.nuisances.sub_learner import predicted_mean

Basis = Callable[[np.ndarray], np.ndarray]

SMALLEST_RELEVANCE = 0.02
"""Absolute relevance that an estimate divides by at least."""


def linear_basis(x: np.ndarray) -> np.ndarray:
    """Return a constant and the columns of x: what an effect is a linear function of by default."""
    return np.column_stack([np.ones(len(x)), x])


@dataclass(frozen=True, slots=True, eq=False)
class Instrumented:
    """Rows with a binary treatment and a binary instrument, and the store of their nuisances.

    Attributes:
        data: the rows.
        a: treatment, 0.0 or 1.0.
        z: instrument, 0.0 or 1.0.
        store: of nuisances.
        clip: smallest probability.
        one_sided: whether nobody is treated without the instrument: no treatment at ``z = 0``.
    """

    data: CausalData
    a: Float[np.ndarray, " rows"]
    z: Float[np.ndarray, " rows"]
    store: NuisanceStore
    clip: float
    one_sided: bool

    def pi(self, name: str, learner: BaseEstimator) -> Clipped:
        """Probability that the instrument is 1."""
        raw = self.store.predict(f"pi {name}", learner, self.z, prediction=_probability, role="instrument_model")
        return clipped(raw, self.clip)

    def mu(self, name: str, learner: BaseEstimator) -> tuple[Clipped, Clipped]:
        """Probability of treatment with and without the instrument."""
        with_z = clipped(self._by_instrument("mu", name, learner, self.a, 1.0, "treatment_model"), self.clip)
        if self.one_sided:
            return with_z, Clipped(np.zeros(len(self.a)), np.zeros(len(self.a), bool))
        without = self._by_instrument("mu", name, learner, self.a, 0.0, "treatment_model")
        return with_z, clipped(without, self.clip)

    def m(self, name: str, learner: BaseEstimator) -> Float[np.ndarray, " rows"]:
        """Mean outcome at the row's own instrument."""
        parts = [self._by_instrument("m", name, learner, self.data.y, z, "outcome") for z in (0.0, 1.0)]
        return np.where(self.z == 1, parts[1], parts[0])

    def _by_instrument(
        self, kind: str, name: str, learner: BaseEstimator, target: np.ndarray, z: float, role: str
    ) -> np.ndarray:
        read = predicted_mean if kind == "m" else _probability
        name = f"{kind}{z:g} {name}"
        return self.store.predict(name, learner, target, rows=self.z == z, prediction=read, role=role)

    def beta(
        self, pi: np.ndarray, mu: np.ndarray, m: np.ndarray, basis: Basis
    ) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, "folds terms"]]:
        r"""Effects of rows, and their coefficients by fold, from the linear equation that does not divide by relevance.

        With $h$ the basis, $\sum (Z - \pi) (A - \mu_Z) h \{(Y - m_Z) - (A - \mu_Z) h' b\} = 0$ over the other folds.
        """
        h, residual = basis(self.data.x), self.a - mu
        weight = np.ones(len(residual)) if self.data.weight is None else self.data.weight
        left = (weight * (self.z - pi) * residual)[:, None] * h
        fold, coefficients = self.store.fold, []
        effects = np.empty(len(residual))
        for k in self.store.folds:
            train = fold != k
            matrix = left[train].T @ (residual[train, None] * h[train])
            b = np.linalg.lstsq(matrix, left[train].T @ (self.data.y - m)[train], rcond=None)[0]
            effects[fold == k] = h[fold == k] @ b
            coefficients.append(b)
        return effects, np.stack(coefficients)

    def omega(
        self, name: str, learner: BaseEstimator, mu: np.ndarray, m: np.ndarray, beta: np.ndarray
    ) -> Float[np.ndarray, " rows"]:
        """Confounding: zero by assumption where nobody is treated without the instrument."""
        if self.one_sided:
            return np.zeros(len(mu))
        residual = self.a - mu
        return self.store.predict(f"omega {name}", learner, residual * (self.data.y - m - beta * residual))

    def own(self, with_z: np.ndarray, without: np.ndarray) -> Float[np.ndarray, " rows"]:
        """Return the values at the row's own instrument."""
        return np.where(self.z == 1, with_z, without)


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """Values that were moved into a range, and which were outside."""

    values: Float[np.ndarray, " rows"]
    outside: Bool[np.ndarray, " rows"]


def clipped(values: np.ndarray, clip: float) -> Clipped:
    """Move probabilities into [clip, 1 - clip]."""
    moved = np.clip(values, clip, 1 - clip)
    return Clipped(moved, moved != values)


def floored_relevance(mu1: np.ndarray, mu0: np.ndarray) -> Clipped:
    """Return relevances with an absolute value that can be divided by, and which were smaller."""
    d = relevance(mu1, mu0)
    small = np.abs(d) < SMALLEST_RELEVANCE
    return Clipped(np.where(small, np.where(d < 0, -SMALLEST_RELEVANCE, SMALLEST_RELEVANCE), d), small)


def _probability(learner: Any, x: np.ndarray) -> np.ndarray:
    return predicted_arms(2)(learner, x)[:, 1]
