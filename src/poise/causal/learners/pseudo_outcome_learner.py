"""Effects by a weighted regression of a pseudo-outcome on covariates, with inverse-variance weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from poise.causal.average_effect import AverageEffect
from poise.causal.inputs import checked_data, refuse_instrument
from poise.causal.learners.averages import arm_nuisances, doubly_robust_average, overlap_average
from poise.causal.learners.effect_estimator import EffectEstimator
from poise.causal.learners.pseudo_outcomes import PSEUDO_OUTCOMES, WEIGHTS, ArmNuisances, combined
from poise.causal.nuisances.defaults import default_regressor
from poise.causal.nuisances.effect_nuisances import EffectNuisances, fit_nuisances
from poise.causal.nuisances.sub_learner import fit_weighted, predicted_mean, seeded_clone, weight_parameter


class PseudoOutcomeLearner(EffectEstimator):
    r"""Effects that vary with covariates, from a weighted regression of a pseudo-outcome.

    Propensities and mean outcomes are cross-fitted. Inverse-variance weights are small where a propensity is near 0 or
    1, where pseudo-outcomes divide by little: they lower the error of the effects without a bias where the effect model
    is flexible. Where it is not (a line through a curve), the weighted fit is that of the people for whom both arms are
    likely; :meth:`overlap_ate` is their average, :meth:`ate` that of all.

    Args:
        pseudo: ``"dr"`` (doubly robust), ``"cov"`` or ``"u"``; see :mod:`poise.causal.learners.pseudo_outcomes`.
        weights: ``"ivw"``; ``None`` for none; for ``"dr"`` also ``"ivw-hetero"`` (the noise of the arms differs),
            ``"arm"``, ``"arm-squared"``; for ``"u"`` also ``"ivw-covariates"``. ``"u"`` with ``"ivw"``: R-learner.
        outcome: learner of the mean outcome, which sees the arm as one more input; a regressor, or a classifier where
            the outcome is 0 or 1. Small boosted trees by default. Learners with trees of a smallest number of rows a
            leaf do not count weights there: set a smallest *fraction of weight* as well.
        propensity: classifier of the arm; or what the design says: a probability, or a function of the covariates.
            Small boosted trees by default.
        effect_model: learner of the effect, whose ``fit`` takes ``sample_weight``. Small boosted trees by default.
        cv: folds of cross-fitting.
        cf_order: 2: nuisances of a row come from the other folds. 3: propensity and outcome from two different folds of
            three. 4: the complement of the propensity from one more fold of four.
        clip: smallest propensity. Estimates outside [clip, 1 - clip] are moved there and counted; known ones are used
            exactly, unless they are 0 or 1.
        standardize_weights: whether weights get a mean of 1, which learners with absolute regularisation need.
        control: label of the arm to compare with; the smallest by default.
        allow_unstable: whether ``pseudo="u"`` without weights is allowed.
        random_state: of folds, and of every learner inside. ``None`` leaves the learners' own.
        n_jobs: learners that are fitted at once, as joblib counts them.

    Attributes:
        nuisance_: by name, ``"propensity_ARM"`` and ``"outcome_ARM"``, arrays of shape (rows,), means over draws; what
            ``pandas.DataFrame`` or ``polars.DataFrame`` take.
        pseudo_: pseudo-outcomes, shape (rows,); (rows, arms) with several arms.
        weights_: their weights, of the same shape, with the weights of rows.
        n_clipped_: rows with a clipped propensity.
        effects_: fitted learners of the effect, one an arm.
        levels_: labels of the arms, the control first.

    Raises:
        TypeError: in ``fit``, if ``propensity`` is no classifier, or ``effect_model`` takes no weights.
        ValueError: in ``fit``, if the treatment is continuous or has one arm, an arm is missing in the complement of a
            fold, a propensity is outside [0, 1], ``y`` is constant, something is not finite, ``pseudo="u"`` has no
            weights, or comes with more than two arms.

    References:
        Fisher (2024). The connection between R-learning and inverse-variance weighting for estimation of heterogeneous
        treatment effects. arXiv:2307.09700. Nie and Wager (2021). Quasi-oracle estimation of heterogeneous treatment
        effects. Kennedy (2023). Towards optimal doubly robust estimation of heterogeneous causal effects.

    Example:
        >>> from sklearn.linear_model import LinearRegression, LogisticRegression
        >>> rng = np.random.default_rng(0)
        >>> X, t = rng.normal(size=(500, 2)), rng.integers(2, size=500)
        >>> y = X[:, 0] + t * (1 + X[:, 1]) + 0.1 * rng.normal(size=500)
        >>> line = LinearRegression()
        >>> learner = PseudoOutcomeLearner(outcome=line, propensity=0.5, effect_model=line, random_state=0)
        >>> learner.fit(X, y, treatment=t).effects_[0].coef_.round(1)
        array([0., 1.])
    """

    def __init__(
        self,
        pseudo: str = "dr",
        weights: str | None = "ivw",
        outcome: Any = None,
        propensity: Any = None,
        effect_model: Any = None,
        *,
        cv: int = 5,
        cf_order: int = 2,
        clip: float = 0.01,
        standardize_weights: bool = True,
        control: Any = None,
        allow_unstable: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.pseudo = pseudo
        self.weights = weights
        self.outcome = outcome
        self.propensity = propensity
        self.effect_model = effect_model
        self.cv = cv
        self.cf_order = cf_order
        self.clip = clip
        self.standardize_weights = standardize_weights
        self.control = control
        self.allow_unstable = allow_unstable
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
    ) -> PseudoOutcomeLearner:
        """Fit nuisances and effects; return the learner.

        Args:
            X: covariates of shape (rows, columns): an array, or a pandas, Polars or Arrow table.
            y: outcome of shape (rows,).
            treatment: labels of arms of shape (rows,).
            instrument: must be ``None``.
            sample_weight: weights of rows; they multiply those of the pseudo-outcomes.
            groups: labels of groups of rows that stay in one fold and are not independent.
        """
        refuse_instrument(instrument, self)
        data = checked_data(self, X, y, treatment, sample_weight, groups, self.control)
        effect_model = default_regressor() if self.effect_model is None else self.effect_model
        self._check(len(data.levels), effect_model)
        generator = check_random_state(self.random_state)
        seeds = None if self.random_state is None else generator
        found = fit_nuisances(
            data, self.outcome, self.propensity,
            cv=self.cv, cf_order=self.cf_order, clip=self.clip, random_state=seeds, n_jobs=self.n_jobs,
        )  # fmt: skip
        self._data, self._nuisances = data, found
        self.levels_, self.n_clipped_ = data.levels, found.n_clipped
        self.nuisance_ = _named(found, data.levels)
        self.effects_, pseudos, weights = [], [], []
        for arm in range(1, len(data.levels)):
            pseudo, weight = self._pseudo_and_weight(arm_nuisances(data, found, arm))
            weight = weight if data.weight is None else weight * data.weight
            if self.standardize_weights:
                weight = weight / weight.mean()
            own = None if self.weights is None and data.weight is None else weight
            copy = seeded_clone(effect_model, seeds)
            self.effects_.append(fit_weighted(copy, data.x, pseudo, own, "effect_model"))
            pseudos.append(pseudo)
            weights.append(weight)
        self.pseudo_ = pseudos[0] if len(pseudos) == 1 else np.stack(pseudos, axis=1)
        self.weights_ = weights[0] if len(weights) == 1 else np.stack(weights, axis=1)
        return self

    def overlap_ate(self) -> AverageEffect | dict[Any, AverageEffect]:
        """Return the average effect with weights that are largest where both arms are likely.

        Each row counts by the product of both probabilities: nobody has to be left out or clipped. It is the target of
        the R-learner with a constant effect, and its estimating equation is insensitive to small errors of nuisances.

        References:
            Li, Morgan and Zaslavsky (2018). Balancing covariates via propensity score weighting.
        """
        check_is_fitted(self)
        data, found = self._data, self._nuisances
        return self._by_arm([overlap_average(data, found, arm, **self._labels(arm)) for arm in self._arms])

    @property
    def _arms(self) -> range:
        return range(1, len(self.levels_))

    def _check(self, arms: int, effect_model: Any) -> None:
        if self.pseudo not in PSEUDO_OUTCOMES:
            raise ValueError(f"pseudo must be one of {sorted(PSEUDO_OUTCOMES)}, got {self.pseudo!r}")
        known = [*WEIGHTS[self.pseudo], None]
        if self.weights not in known:
            raise ValueError(f"weights must be one of {known} for pseudo={self.pseudo!r}, got {self.weights!r}")
        if self.pseudo == "u" and self.weights is None and not self.allow_unstable:
            raise ValueError(
                "weights must be given for pseudo='u', which divides by the treatment minus its propensity: without "
                "weights a few rows decide everything. Pass allow_unstable=True to see it"
            )
        if arms > 2 and self.pseudo != "dr":
            raise ValueError(
                f"treatment must have two arms for pseudo={self.pseudo!r}, got {arms}; pseudo='dr' compares each with "
                "the control"
            )
        if self.weights is not None:
            weight_parameter(effect_model, "effect_model")

    def _pseudo_and_weight(self, n: ArmNuisances) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        pseudo = PSEUDO_OUTCOMES[self.pseudo](n)
        weight = np.ones_like(pseudo) if self.weights is None else WEIGHTS[self.pseudo][self.weights](n)
        return combined(pseudo, weight)

    def _effects(self, x: np.ndarray) -> Float[np.ndarray, "rows arms"]:
        return np.stack([predicted_mean(learner, x) for learner in self.effects_], axis=1)

    def _average(self, arm: int) -> AverageEffect:
        return doubly_robust_average(self._data, self._nuisances, arm, **self._labels(arm))


def _named(found: EffectNuisances, levels: np.ndarray) -> dict[str, np.ndarray]:
    parts = {"propensity": found.propensity.mean(0), "outcome": found.outcome.mean(0)}
    return {f"{name}_{level}": values[:, k] for name, values in parts.items() for k, level in enumerate(levels)}
