"""An estimator that is trained on real rows and on rows of a generator fitted to them."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data


def _has(method: str) -> Any:
    return available_if(lambda self: hasattr(self.estimator, method))


class AugmentedEstimator(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier trained on real rows and ``ratio`` times as many rows of a generator fitted to the same real rows.

    Args:
        estimator: classifier; a clone is fitted.
        generator: ``fit(X, y)``, and ``sample(n)`` that returns rows and labels; a clone is fitted.
        ratio: synthetic rows for each real one; 0 for none.
        weight: sample weight of a synthetic row; real ones have 1.
        random_state: of the generator, where it takes one.

    References:
        Zheng, Wu, Li, "Toward understanding generative data augmentation", NeurIPS 2023, arXiv:2305.17476.
    """

    def __init__(
        self, estimator: Any, generator: Any, ratio: float = 1.0, weight: float = 1.0, random_state: Any = None
    ) -> None:
        self.estimator = estimator
        self.generator = generator
        self.ratio = ratio
        self.weight = weight
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "rows dim"], y: Shaped[np.ndarray, " rows"]) -> AugmentedEstimator:
        """Fit the generator to the rows, draw from it, and fit the classifier to both.

        Raises:
            ValueError: if ``ratio`` or ``weight`` is negative, or the generator returns rows of another width, values
                that are not finite, or labels that are not in ``y``.
            TypeError: if ``weight`` is not 1 and the classifier takes no sample weights.
        """
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        for name in ("ratio", "weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got one class: {self.classes_}")
        count, model = int(self.ratio * len(y)), clone(self.estimator)
        if not count:
            self.estimator_ = model.fit(X, y)
            return self
        synthetic, labels = self.synthetic_rows(X, y, count)
        rows, targets = np.concatenate([X, synthetic]), np.concatenate([y, labels])
        if self.weight == 1:
            self.estimator_ = model.fit(rows, targets)
            return self
        if not has_fit_parameter(model, "sample_weight"):
            raise TypeError(f"weight must be 1: {type(model).__name__} takes no sample weights")
        weights = np.concatenate([np.ones(len(y)), np.full(count, float(self.weight))])
        self.estimator_ = model.fit(rows, targets, sample_weight=weights)
        return self

    def synthetic_rows(
        self, X: Float[np.ndarray, "rows dim"], y: Shaped[np.ndarray, " rows"], count: int
    ) -> tuple[Float[np.ndarray, "count dim"], Shaped[np.ndarray, " count"]]:
        """Fit the generator and return rows and labels drawn from it."""
        generator = clone(self.generator)
        if "random_state" in generator.get_params():
            generator.set_params(random_state=check_random_state(self.random_state).randint(2**31 - 1))
        self.generator_ = generator.fit(X, y)
        rows, labels = self.generator_.sample(count)
        rows, labels = np.asarray(rows, float), np.asarray(labels)
        if rows.shape != (count, X.shape[1]) or not np.isfinite(rows).all():
            raise ValueError(f"generator must return finite rows of shape ({count}, {X.shape[1]}), got {rows.shape}")
        if unknown := set(np.unique(labels)) - set(np.unique(y)):
            raise ValueError(f"generator must return labels of y, got {sorted(unknown)}")
        return rows, labels

    @_has("predict")
    def predict(self, X: Float[np.ndarray, "rows dim"]) -> Shaped[np.ndarray, " rows"]:
        """Predict labels."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.estimator_.predict(validate_data(self, X, reset=False)))

    @_has("predict_proba")
    def predict_proba(self, X: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows classes"]:
        """Predict probabilities, columns as ``classes_``."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.estimator_.predict_proba(validate_data(self, X, reset=False)))
