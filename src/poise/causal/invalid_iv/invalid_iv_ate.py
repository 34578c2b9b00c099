"""The average effect of a binary treatment with one binary instrument that may affect the outcome directly."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from poise.causal.average_effect import AverageEffect, ratio_average
from poise.causal.inputs import CausalData, binary_column, checked_data
from poise.causal.invalid_iv.influence import influence, relevance
from poise.causal.invalid_iv.nuisances import Basis, Instrumented, floored_relevance, linear_basis
from poise.causal.learners.effect_estimator import EffectEstimator
from poise.causal.nuisances.defaults import default_classifier, default_regressor
from poise.causal.nuisances.folds import stratified_folds
from poise.causal.nuisances.propensity import require_classifier
from poise.causal.nuisances.store import NuisanceStore
from poise.causal.simple_estimates import least_squares, two_stage_least_squares
from poise.report import Report, Table
from poise.tools.number import number

_FEWEST = 50
_WEAK, _TOO_WEAK = 0.05, 0.01


class WeakIdentificationError(ValueError):
    """The instrument hardly changes the variance of the treatment, so that it says nothing about the effect."""


@dataclass(frozen=True, slots=True, eq=False)
class _Repetition:
    """The estimate with one set of folds."""

    phi: np.ndarray
    beta: np.ndarray
    omega: np.ndarray
    d: np.ndarray
    coefficients: np.ndarray
    f: float
    clipped: dict[str, float]


class InvalidIVATE(EffectEstimator):
    r"""The average effect with an instrument that may affect the outcome directly, as no instrument of 2SLS may.

    What identifies the effect is that the instrument changes the *variance* of the treatment, where unmeasured
    confounding is additive: the instrument is independent of what confounds, given covariates, and neither it nor the
    treatment interacts with what confounds. The estimate is right if one of four sets of nuisances is; see
    :mod:`poise.causal.invalid_iv.influence`. Effects of rows are a linear function of a basis of the covariates.

    Where nobody is treated without the instrument (one-sided non-compliance), the confounding is zero by assumption and
    the estimate compares those who take the treatment with those who do not, among those with the instrument;
    ``one_sided_`` and the report say so.

    Args:
        outcome: learner of the mean outcome and of the confounding; small boosted trees by default.
        treatment_model: classifier of the treatment; small boosted trees by default.
        instrument_model: classifier of the instrument; small boosted trees by default.
        effect_basis: ``"linear"`` for a constant and the covariates, or a function from covariates to (rows, terms).
        cv: folds of cross-fitting.
        n_rep: repetitions with other folds; the median is taken.
        clip: smallest probability.
        allow_weak: whether an instrument of a median absolute relevance below 0.01 is allowed.
        random_state: of folds, and of every learner inside; ``None`` leaves the learners' own.
        n_jobs: learners that are fitted at once.

    Attributes:
        ate_: the average effect.
        stderr_: its standard error.
        phi_: uncentred influence function, shape (rows,), of the repetition nearest to the median.
        beta_values_: effects of the rows.
        omega_: confounding of the rows.
        D_: relevance of the instrument for the rows.
        one_sided_: whether nobody is treated without the instrument.
        levels_: labels of the arms, the control first.

    Raises:
        TypeError: in ``fit``, if a classifier is none.
        ValueError: in ``fit``, if treatment or instrument is missing or not binary, the treatment is constant with the
            instrument, there are fewer than 50 rows of a treatment and an instrument, or something is not finite.
        WeakIdentificationError: in ``fit``, if the instrument hardly changes the variance of the treatment.

    References:
        Sun, Cui and Tchetgen Tchetgen (2022). Selective machine learning of the average treatment effect with an
        invalid instrumental variable. arXiv:1907.11882.
    """

    def __init__(
        self,
        outcome: Any = None,
        treatment_model: Any = None,
        instrument_model: Any = None,
        effect_basis: str | Basis = "linear",
        *,
        cv: int = 3,
        n_rep: int = 1,
        clip: float = 0.01,
        allow_weak: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.outcome = outcome
        self.treatment_model = treatment_model
        self.instrument_model = instrument_model
        self.effect_basis = effect_basis
        self.cv = cv
        self.n_rep = n_rep
        self.clip = clip
        self.allow_weak = allow_weak
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> InvalidIVATE:
        """Fit nuisances and the average effect; return the estimator.

        Args:
            X: covariates of shape (rows, columns): an array, or a pandas, Polars or Arrow table.
            y: outcome of shape (rows,).
            treatment: two labels, of shape (rows,).
            instrument: two labels, of shape (rows,).
            sample_weight: weights of rows.
            groups: labels of groups of rows that stay in one fold and are not independent.
        """
        basis = self._check()
        data = checked_data(self, X, y, treatment, sample_weight, groups)
        z = checked_instrument(data, instrument)
        generator = check_random_state(self.random_state)
        seeds = None if self.random_state is None else generator
        self.levels_, self._data, self._z = data.levels, data, z
        self.one_sided_ = is_one_sided(data.arm, z)
        runs = []
        for _ in range(self.n_rep):
            store = NuisanceStore(
                data.x, instrument_folds(data, z, self.cv, generator), data.weight, seeds, self.n_jobs
            )
            rows = Instrumented(data, data.arm.astype(float), z, store, self.clip, self.one_sided_)
            runs.append(self._once(rows, basis))
        averages = [self._mean(run) for run in runs]
        middle = float(np.median([average.estimate for average in averages]))
        nearest = int(np.argmin([abs(average.estimate - middle) for average in averages]))
        self.stderr_ = float(np.median([math.hypot(a.stderr, a.estimate - middle) for a in averages]))
        self.ate_ = middle
        run = runs[nearest]
        self.phi_, self.beta_values_, self.omega_, self.D_ = run.phi, run.beta, run.omega, run.d
        self.coefficients_ = np.mean([run.coefficients.mean(0) for run in runs], axis=0)
        self._run, self._basis = run, basis
        self._influence = averages[nearest].influence
        self._check_relevance()
        return self

    def beta_(self, X: Any) -> Float[np.ndarray, " rows"]:
        """Return effects of rows; :meth:`effect` under the name that the method has for it."""
        return self.effect(X)

    def conf_int(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the interval of the average effect.

        Args:
            alpha: probability outside of it.
        """
        check_is_fitted(self)
        return self._average(1).conf_int(alpha)

    def diagnostics(self) -> Report:
        """Return relevance of the instrument, clipped rows, one-sidedness, and the estimate beside simple ones.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        data, run = self._data, self._run
        average = self._average(1)
        simple = {
            "least squares": least_squares(data),
            "two-stage least squares": two_stage_least_squares(data, self._z),
        }
        rows = [[name, a.estimate, a.stderr, *a.interval] for name, a in {"this estimate": average, **simple}.items()]
        facts: list[list[object]] = [
            ["rows", len(data)],
            ["median of the absolute relevance", float(np.median(np.abs(run.d)))],
            ["F statistic of the instrument on the squared treatment residual", run.f],
            *([f"part of rows clipped: {name}", part] for name, part in run.clipped.items()),
            ["nobody is treated without the instrument", self.one_sided_],
        ]
        sentences = [f"The average effect is {average}."]
        if self.one_sided_:
            sentences.append(
                "Nobody is treated without the instrument: the estimate compares those who take the treatment with "
                "those who do not, among those with the instrument, and assumes that nothing unmeasured confounds them."
            )
        if float(np.median(np.abs(run.d))) < _WEAK:
            sentences.append("The instrument is weak: it hardly changes the variance of the treatment.")
        return Report(
            "Average effect with an invalid instrument",
            " ".join(sentences),
            blocks=[
                Table("Estimates", ["estimator", "average effect", "standard error", "low", "high"], rows),
                Table("Diagnostics", ["quantity", "value"], facts),
            ],
            meta={"one_sided": self.one_sided_, "f": run.f, "rows": len(data)},
        )

    def _check(self) -> Basis:
        for learner in (self.treatment_model, self.instrument_model):
            if learner is not None:
                require_classifier(learner)
        if self.n_rep < 1:
            raise ValueError(f"n_rep must be at least 1, got {self.n_rep}")
        if not 0 < self.clip < 0.5:
            raise ValueError(f"clip must lie in (0, 0.5), got {self.clip}")
        if callable(self.effect_basis):
            return self.effect_basis
        if self.effect_basis != "linear":
            raise ValueError(f"effect_basis must be 'linear' or a function, got {self.effect_basis!r}")
        return linear_basis

    def _once(self, rows: Instrumented, basis: Basis) -> _Repetition:
        outcome = default_regressor() if self.outcome is None else self.outcome
        treatment = default_classifier() if self.treatment_model is None else self.treatment_model
        instrument = default_classifier() if self.instrument_model is None else self.instrument_model
        pi, (mu1, mu0) = rows.pi("own", instrument), rows.mu("own", treatment)
        mu, m = rows.own(mu1.values, mu0.values), rows.m("own", outcome)
        beta, coefficients = rows.beta(pi.values, mu, m, basis)
        omega = rows.omega("own", outcome, mu, m, beta)
        d = floored_relevance(mu1.values, mu0.values)
        y, a, z = rows.data.y, rows.a, rows.z
        phi = influence(y, a, z, pi.values, mu, d.values, beta, m - beta * mu, omega)
        outside = {
            "instrument": float(pi.outside.mean()),
            "treatment": float((mu1.outside | mu0.outside).mean()),
            "relevance": float(d.outside.mean()),
        }
        f = _f_statistic(z - pi.values, (a - mu) ** 2)
        return _Repetition(phi, beta, omega, relevance(mu1.values, mu0.values), coefficients, f, outside)

    def _mean(self, run: _Repetition) -> AverageEffect:
        return ratio_average(run.phi, np.ones(len(run.phi)), self._data.weight, self._data.groups, **self._labels(1))

    def _check_relevance(self) -> None:
        median = float(np.median(np.abs(self._run.d)))
        if median < _TOO_WEAK and not self.allow_weak:
            raise WeakIdentificationError(
                f"instrument must change the variance of the treatment, got a median absolute relevance of "
                f"{number(median, 2)} (below {_TOO_WEAK}); pass allow_weak=True to go on"
            )
        if median < _WEAK:
            warnings.warn(f"the instrument is weak: its median absolute relevance is {number(median, 2)}", stacklevel=3)

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        return (self._basis(x) @ self.coefficients_)[:, None]

    def _average(self, arm: int) -> AverageEffect:
        return AverageEffect(self.ate_, self.stderr_, influence=self._influence, **self._labels(arm))


def checked_instrument(data: CausalData, instrument: Any) -> Float[np.ndarray, " rows"]:
    """Return a binary instrument as 0.0 and 1.0, checked against the treatment.

    Raises:
        ValueError: if it or the treatment is not binary, the treatment is constant where the instrument is 1, or there
            are fewer than 50 rows of a treatment and an instrument.
    """
    if instrument is None:
        raise ValueError("instrument must be given")
    if len(data.levels) != 2:
        raise ValueError(f"treatment must be binary, got {len(data.levels)} arms")
    z = binary_column("instrument", instrument)
    if len(z) != len(data):
        raise ValueError(f"instrument must have one label for each of {len(data)} rows, got {len(z)}")
    counts = np.array([[np.sum((z == k) & (data.arm == arm)) for arm in (0, 1)] for k in (0, 1)])
    if not counts[1].all():
        raise ValueError("treatment must vary where the instrument is 1, it is constant there")
    needed = counts[1:].ravel() if is_one_sided(data.arm, z) else counts.ravel()
    if needed.min() < _FEWEST:
        raise ValueError(
            f"treatment and instrument must have at least {_FEWEST} rows of each combination, got {counts.tolist()} "
            "(rows: instrument 0 and 1; columns: treatment 0 and 1)"
        )
    return z


def is_one_sided(arm: np.ndarray, z: np.ndarray) -> bool:
    """Whether fewer than one in a thousand are treated without the instrument."""
    return float(arm[z == 0].mean()) < 1e-3


def instrument_folds(data: CausalData, z: np.ndarray, cv: int, generator: np.random.RandomState) -> np.ndarray:
    """Return folds in which every combination of treatment and instrument is spread evenly."""
    labels, cell = np.unique(2 * z + data.arm, return_inverse=True)
    return stratified_folds(CausalData(data.x, data.y, cell, labels, None, data.groups), cv, generator)


def _f_statistic(x: np.ndarray, y: np.ndarray) -> float:
    found = stats.linregress(x, y)
    return float((found.slope / found.stderr) ** 2) if found.stderr > 0 else math.inf
