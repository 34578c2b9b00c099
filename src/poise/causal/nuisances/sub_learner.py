"""Fitting a scikit-learn learner inside an estimator: copies, random states, weights, predictions of a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn
from jaxtyping import Float
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter


def seeded_clone(learner: BaseEstimator, random_state: np.random.RandomState | None) -> Any:
    """Return an unfitted copy of a learner, with every ``random_state`` in it drawn from a generator.

    Args:
        learner: any scikit-learn estimator, a pipeline or a search.
        random_state: the generator; ``None`` leaves the learner's own settings.
    """
    copy = clone(learner)
    if random_state is not None:
        names = sorted(n for n in copy.get_params(deep=True) if n == "random_state" or n.endswith("__random_state"))
        copy.set_params(**{name: int(random_state.randint(2**31 - 1)) for name in names})
    return copy


def fit_weighted(learner: Any, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, role: str) -> Any:
    """Fit a learner with weights of rows; the learner is returned.

    Args:
        learner: unfitted.
        x: inputs.
        y: targets.
        weight: one per row; ``None`` for none.
        role: name of the argument that the learner came as, for the error.

    Raises:
        TypeError: if there are weights and the learner takes none.
    """
    passed = {} if weight is None else {weight_parameter(learner, role): weight}
    # The user's routing settings are about the estimator they call, not about learners inside it.
    with sklearn.config_context(enable_metadata_routing=False):
        return learner.fit(x, y, **passed)


def weight_parameter(learner: Any, role: str) -> str:
    """Return the name under which ``fit`` of a learner takes weights, through pipelines and searches.

    Raises:
        TypeError: if it takes none.
    """
    if isinstance(learner, Pipeline):
        name, last = learner.steps[-1]
        return f"{name}__{weight_parameter(last, role)}"
    if has_fit_parameter(learner, "sample_weight"):
        return "sample_weight"
    inner = getattr(learner, "estimator", None)
    if inner is not None and hasattr(learner, "cv"):  # a search hands what it gets to its estimator
        return weight_parameter(inner, role)
    raise TypeError(
        f"{role} must be a learner whose fit takes sample_weight, got {type(learner).__name__}, which does not"
    )


def predicted_mean(learner: Any, x: np.ndarray) -> Float[np.ndarray, " rows"]:
    """Return what a fitted learner predicts as the mean of its target: a classifier's probability of class 1.

    Raises:
        ValueError: if a classifier knows other classes than 0 and 1.
    """
    if not is_classifier(learner):
        return np.asarray(learner.predict(x), dtype=float).reshape(len(x))
    classes = np.asarray(learner.classes_, dtype=float)
    if not set(classes) <= {0.0, 1.0}:
        raise ValueError(f"y must be 0 or 1 where its learner is a classifier, got classes {classes.tolist()}")
    return np.asarray(learner.predict_proba(x) @ classes, dtype=float)
