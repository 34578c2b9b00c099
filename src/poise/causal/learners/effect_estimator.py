"""What every estimator of varying effects in this room can do."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from poise.causal.average_effect import AverageEffect
from poise.causal.inputs import FIT_REQUESTS, CausalData, checked_rows


class EffectEstimator(BaseEstimator):
    """An estimator of effects that vary with covariates.

    ``fit(X, y, *, treatment, instrument=None, sample_weight=None, groups=None)`` is the same in all; the four last ones
    are requested of scikit-learn's metadata routing, so that they pass through pipelines:

        with sklearn.config_context(enable_metadata_routing=True):
            make_pipeline(StandardScaler(), DRLearner()).fit(X, y, treatment=t)

    Attributes:
        levels_: labels of the arms, the control first.
        n_features_in_: columns of ``X``.
    """

    __metadata_request__fit = FIT_REQUESTS

    levels_: np.ndarray
    n_features_in_: int

    def effect(self, X: Any) -> Float[np.ndarray, "rows *arms"]:
        """Return the effect of treatment against control for each row; one column an arm where there are several.

        Args:
            X: covariates of shape (rows, columns), with the columns of the fit.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
            ValueError: if the columns are others.
        """
        check_is_fitted(self)
        found = self._effects(checked_rows(self, X))
        return found[:, 0] if len(self.levels_) == 2 else found

    def predict(self, X: Any) -> Float[np.ndarray, "rows *arms"]:
        """Return :meth:`effect`, under the name that pipelines know."""
        return self.effect(X)

    def const_marginal_effect(self, X: Any) -> Float[np.ndarray, "rows *arms"]:
        """Return :meth:`effect`, under EconML's name."""
        return self.effect(X)

    def ate(self) -> AverageEffect | dict[Any, AverageEffect]:
        """Return the average effect over the rows of the fit; by arm where there are several.

        Raises:
            sklearn.exceptions.NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        return self._by_arm([self._average(arm) for arm in range(1, len(self.levels_))])

    def _by_arm(self, averages: list[AverageEffect]) -> AverageEffect | dict[Any, AverageEffect]:
        if len(averages) == 1:
            return averages[0]
        return {average.arm: average for average in averages}

    def _labels(self, arm: int) -> dict[str, Any]:
        return {"arm": _plain(self.levels_[arm]), "control": _plain(self.levels_[0])}

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        raise NotImplementedError

    def _average(self, arm: int) -> AverageEffect:
        raise NotImplementedError


def plug_in_average(effects: np.ndarray, data: CausalData, **labels: Any) -> AverageEffect:
    """Return the mean of predicted effects, which has no influence function and so no standard error."""
    return AverageEffect(float(np.average(effects, weights=data.weight)), float("nan"), **labels)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
