"""The S-, T- and X-learner: effects as differences of regressions of the outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.utils import check_random_state

from poise.causal.average_effect import AverageEffect
from poise.causal.inputs import CausalData, checked_data, refuse_instrument
from poise.causal.learners.effect_estimator import EffectEstimator, plug_in_average
from poise.causal.nuisances.defaults import default_classifier, default_regressor
from poise.causal.nuisances.effect_nuisances import with_arms
from poise.causal.nuisances.propensity import (
    clip_propensity,
    is_known,
    known_propensity,
    predicted_arms,
    require_classifier,
)
from poise.causal.nuisances.sub_learner import fit_weighted, predicted_mean, seeded_clone


class SLearner(EffectEstimator):
    """Effects as differences between what one regression predicts for both arms.

    Where the learner uses the arm little (a small effect, a strong penalty), its effects are drawn towards 0. Average
    effects have no standard error.

    Args:
        outcome: learner of the mean outcome, which sees the arm as one more input; small boosted trees by default.
        control: label of the arm to compare with; the smallest by default.
        random_state: of the learner; ``None`` leaves its own.

    Attributes:
        levels_: labels of the arms, the control first.
        model_: the fitted learner.

    References:
        Künzel et al. (2019). Metalearners for estimating heterogeneous treatment effects using machine learning.
    """

    def __init__(self, outcome: Any = None, *, control: Any = None, random_state: Any = None) -> None:
        self.outcome = outcome
        self.control = control
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> SLearner:
        """Fit the regression; return the learner. See :meth:`PseudoOutcomeLearner.fit` for the arguments."""
        refuse_instrument(instrument, self)
        data = checked_data(self, X, y, treatment, sample_weight, groups, self.control)
        self.levels_, self._data = data.levels, data
        learner = _copy(self.outcome, self.random_state)
        inputs = with_arms(data.x, data.arm, len(data.levels))
        self.model_ = fit_weighted(learner, inputs, data.y, data.weight, "outcome")
        return self

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        arms = len(self.levels_)
        means = [predicted_mean(self.model_, with_arms(x, np.full(len(x), arm), arms)) for arm in range(arms)]
        return np.stack(means[1:], axis=1) - means[0][:, None]

    def _average(self, arm: int) -> AverageEffect:
        return plug_in_average(self._effects(self._data.x)[:, arm - 1], self._data, **self._labels(arm))


class TLearner(EffectEstimator):
    """Effects as differences between regressions of the outcome in each arm.

    Average effects have no standard error.

    Args:
        outcome: learner of the mean outcome in an arm; small boosted trees by default.
        control: label of the arm to compare with; the smallest by default.
        random_state: of the learners; ``None`` leaves their own.

    Attributes:
        levels_: labels of the arms, the control first.
        models_: fitted learners, one an arm.

    References:
        Künzel et al. (2019). Metalearners for estimating heterogeneous treatment effects using machine learning.
    """

    def __init__(self, outcome: Any = None, *, control: Any = None, random_state: Any = None) -> None:
        self.outcome = outcome
        self.control = control
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> TLearner:
        """Fit one regression an arm; return the learner. See :meth:`PseudoOutcomeLearner.fit` for the arguments."""
        refuse_instrument(instrument, self)
        data = checked_data(self, X, y, treatment, sample_weight, groups, self.control)
        self.levels_, self._data = data.levels, data
        self.models_ = _fit_arms(data, self.outcome, self.random_state)
        return self

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        means = [predicted_mean(model, x) for model in self.models_]
        return np.stack(means[1:], axis=1) - means[0][:, None]

    def _average(self, arm: int) -> AverageEffect:
        return plug_in_average(self._effects(self._data.x)[:, arm - 1], self._data, **self._labels(arm))


class XLearner(EffectEstimator):
    r"""Effects of each arm, imputed with the other arm's regression, and averaged by propensity.

    With $D_1 = Y - \mu_0(X)$ in the arm and $D_0 = \mu_1(X) - Y$ in the control, the effect is
    $\kappa \hat\tau_1 + \pi \hat\tau_0$ over $\pi + \kappa$, where $\hat\tau_a$ is a regression of $D_a$ on covariates.
    Average effects have no standard error.

    Args:
        outcome: learner of the mean outcome in an arm; small boosted trees by default.
        effect_model: learner of imputed effects; as ``outcome`` by default.
        propensity: classifier, a known probability (0.5 averages both parts equally), or a known function of the
            covariates; small boosted trees by default.
        clip: smallest propensity.
        control: label of the arm to compare with; the smallest by default.
        random_state: of the learners; ``None`` leaves their own.

    Attributes:
        levels_: labels of the arms, the control first.
        models_: fitted learners of the outcome, one an arm.
        effects_: for each arm, the fitted learners of effects imputed in the arm and in the control.

    References:
        Künzel et al. (2019). Metalearners for estimating heterogeneous treatment effects using machine learning.
    """

    def __init__(
        self,
        outcome: Any = None,
        effect_model: Any = None,
        propensity: Any = None,
        *,
        clip: float = 0.01,
        control: Any = None,
        random_state: Any = None,
    ) -> None:
        self.outcome = outcome
        self.effect_model = effect_model
        self.propensity = propensity
        self.clip = clip
        self.control = control
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        treatment: Any,
        instrument: Any = None,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> XLearner:
        """Fit all regressions; return the learner. See :meth:`PseudoOutcomeLearner.fit` for the arguments."""
        refuse_instrument(instrument, self)
        data = checked_data(self, X, y, treatment, sample_weight, groups, self.control)
        self.levels_, self._data = data.levels, data
        seeds = None if self.random_state is None else check_random_state(self.random_state)
        self._classifier = None
        if not is_known(self.propensity):
            classifier = default_classifier() if self.propensity is None else self.propensity
            require_classifier(classifier)
            copy = seeded_clone(classifier, seeds)
            self._classifier = fit_weighted(copy, data.x, data.arm, data.weight, "propensity")
        self.models_ = _fit_arms(data, self.outcome, seeds)
        effect_model = self.outcome if self.effect_model is None else self.effect_model
        self.effects_ = [self._imputed(data, arm, effect_model, seeds) for arm in range(1, len(data.levels))]
        return self

    def _imputed(self, data: CausalData, arm: int, effect_model: Any, seeds: Any) -> tuple[Any, Any]:
        parts = []
        for own, other, sign in ((arm, 0, 1.0), (0, arm, -1.0)):
            rows = data.take(data.arm == own)
            imputed = sign * (rows.y - predicted_mean(self.models_[other], rows.x))
            parts.append(fit_weighted(_copy(effect_model, seeds), rows.x, imputed, rows.weight, "effect_model"))
        return parts[0], parts[1]

    def _probabilities(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        arms = len(self.levels_)
        if self._classifier is None:
            return clip_propensity(known_propensity(self.propensity, x, arms), self.clip, known=True).values
        return clip_propensity(predicted_arms(arms)(self._classifier, x), self.clip).values

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        probability = self._probabilities(x)
        found = []
        for arm, (in_arm, in_control) in enumerate(self.effects_, start=1):
            pi, kappa = probability[:, arm], probability[:, 0]
            parts = kappa * predicted_mean(in_arm, x) + pi * predicted_mean(in_control, x)
            found.append(parts / (pi + kappa))
        return np.stack(found, axis=1)

    def _average(self, arm: int) -> AverageEffect:
        return plug_in_average(self._effects(self._data.x)[:, arm - 1], self._data, **self._labels(arm))


def _copy(learner: Any, random_state: Any) -> Any:
    chosen = default_regressor() if learner is None else learner
    return seeded_clone(chosen, None if random_state is None else check_random_state(random_state))


def _fit_arms(data: CausalData, outcome: Any, random_state: Any) -> list[Any]:
    seeds = None if random_state is None else check_random_state(random_state)
    parts = [data.take(data.arm == arm) for arm in range(len(data.levels))]
    return [fit_weighted(_copy(outcome, seeds), part.x, part.y, part.weight, "outcome") for part in parts]
