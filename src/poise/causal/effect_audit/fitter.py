"""How an audit fits what the user has: an estimator of this room, a pipeline, an EconML estimator, or a function."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing

from poise.causal.average_effect import AverageEffect
from poise.causal.nuisances.sub_learner import seeded_clone


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The user's data: what an estimator is fitted on."""

    X: Any
    y: np.ndarray
    treatment: np.ndarray
    sample_weight: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> Rows:
        """Return a part of the rows."""
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        groups = None if self.groups is None else self.groups[rows]
        return Rows(_safe_indexing(self.X, rows), self.y[rows], self.treatment[rows], weight, groups)


@dataclass(frozen=True, slots=True, eq=False)
class FittedEffect:
    """What an audit reads from one fit.

    Attributes:
        average: the average effect.
        effect: returns effects of rows; ``None`` where there are none.
        fitted: the fitted object itself.
    """

    average: AverageEffect
    effect: Callable[[Any], np.ndarray] | None
    fitted: Any


Fitter = Callable[[Rows, int], FittedEffect]


def fitter_of(estimator: Any, treated: Any, control: Any) -> Fitter:
    """Return the function that fits an estimator to rows with a seed.

    Args:
        estimator: with ``fit(X, y, treatment=...)``, alone or last in a pipeline; with EconML's ``fit(Y, T, X=...)``;
            or a function ``estimator(X, y, treatment, seed)`` that returns a number, a pair of a number and its
            standard error, an :class:`AverageEffect`, or a fitted object with ``ate()`` or with ``coef`` and ``se``.
        treated: label of the treated arm.
        control: label of the other.

    Raises:
        TypeError: if it is none of these.
    """
    parameters = _parameters(getattr(estimator, "fit", None))
    if "treatment" in parameters:
        return lambda rows, seed: _fit_own(estimator, rows, seed)
    if isinstance(estimator, Pipeline) and "treatment" in _parameters(getattr(estimator.steps[-1][1], "fit", None)):
        return lambda rows, seed: _fit_pipeline(estimator, rows, seed)
    if {"Y", "T"} <= parameters:
        return lambda rows, seed: _fit_econml(estimator, rows, seed, control, treated)
    if callable(estimator):
        return lambda rows, seed: _call(estimator, rows, seed)
    raise TypeError(
        "estimator must have fit(X, y, treatment=...) or fit(Y, T, X=...), be a pipeline that ends with one, or be a "
        f"function of (X, y, treatment, seed); got {type(estimator).__name__}"
    )


def _parameters(function: Any) -> set[str]:
    return set() if function is None else set(inspect.signature(function).parameters)


def _fit_own(estimator: Any, rows: Rows, seed: int) -> FittedEffect:
    fitted = _seeded(estimator, seed)
    passed = {"treatment": rows.treatment, **_weights(rows)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clipped rows are in the report
        fitted.fit(rows.X, rows.y, **passed)
    return FittedEffect(fitted.ate(), getattr(fitted, "effect", None), fitted)


def _fit_pipeline(estimator: Pipeline, rows: Rows, seed: int) -> FittedEffect:
    fitted = seeded_clone(estimator, np.random.RandomState(seed))
    fitted.steps[-1] = (fitted.steps[-1][0], _seeded(estimator.steps[-1][1], seed))
    with warnings.catch_warnings(), sklearn.config_context(enable_metadata_routing=True):
        warnings.simplefilter("ignore")
        fitted.fit(rows.X, rows.y, treatment=rows.treatment, **_weights(rows))
    return FittedEffect(fitted[-1].ate(), fitted.predict, fitted)


def _seeded(estimator: Any, seed: int) -> Any:
    """Return a copy that is what ``random_state=seed`` makes of it, which hands the seed on to what is inside."""
    if "random_state" in estimator.get_params(deep=False):
        return clone(estimator).set_params(random_state=seed)
    return seeded_clone(estimator, np.random.RandomState(seed))


def _weights(rows: Rows) -> dict[str, np.ndarray]:
    given = {"sample_weight": rows.sample_weight, "groups": rows.groups}
    return {name: values for name, values in given.items() if values is not None}


def _fit_econml(estimator: Any, rows: Rows, seed: int, control: Any, treated: Any) -> FittedEffect:
    _refuse_weights(rows, estimator)
    fitted = copy.deepcopy(estimator)
    if hasattr(fitted, "random_state"):
        fitted.random_state = seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted.fit(rows.y, rows.treatment, X=rows.X)
        average = float(np.ravel(fitted.ate(rows.X, T0=control, T1=treated))[0])
        stderr = math.nan
        try:
            inference = fitted.ate_inference(rows.X, T0=control, T1=treated)
            stderr = float(np.ravel(inference.stderr_mean)[0])
        except (AttributeError, NotImplementedError, ValueError, TypeError):
            pass  # its final stage has no inference; the report says that there is no standard error
    return FittedEffect(
        AverageEffect(average, stderr, arm=treated, control=control),
        lambda X: np.ravel(fitted.effect(X, T0=control, T1=treated)),
        fitted,
    )


def _call(function: Any, rows: Rows, seed: int) -> FittedEffect:
    _refuse_weights(rows, function)
    found = function(rows.X, rows.y, rows.treatment, seed)
    if hasattr(found, "coef") and hasattr(found, "se"):
        return FittedEffect(AverageEffect(float(np.ravel(found.coef)[0]), float(np.ravel(found.se)[0])), None, found)
    if hasattr(found, "ate"):
        return FittedEffect(found.ate(), getattr(found, "effect", None), found)
    if isinstance(found, AverageEffect):
        return FittedEffect(found, None, found)
    pair = np.ravel(np.asarray(found, dtype=float))
    if pair.size not in (1, 2) or not math.isfinite(pair[0]):
        raise ValueError(f"estimator must return a finite number, or one with its standard error, got {found!r}")
    return FittedEffect(AverageEffect(float(pair[0]), float(pair[1]) if pair.size == 2 else math.nan), None, found)


def _refuse_weights(rows: Rows, estimator: Any) -> None:
    if given := sorted(_weights(rows)):
        raise ValueError(
            f"{', '.join(given)} must be None for {getattr(estimator, '__name__', type(estimator).__name__)}"
        )
