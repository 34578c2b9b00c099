"""Scikit-learn's own checks of estimators. They know no treatment, so subclasses take one from the row numbers."""

import inspect

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import _num_samples

from poise.causal import (
    Candidate,
    DoublyRobustAverage,
    DRLearner,
    EvolvedFeatures,
    InvalidIVATE,
    PseudoOutcomeLearner,
    RLearner,
    SelectiveEstimator,
    SLearner,
    TLearner,
    XLearner,
)


class Alternating:
    """Rows are treated in turn."""

    def fit(self, X, y, sample_weight=None):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        return super().fit(X, y, treatment=np.arange(_num_samples(X)) % 2, sample_weight=sample_weight)


class AlternatingPseudoOutcome(Alternating, PseudoOutcomeLearner):
    __init__ = PseudoOutcomeLearner.__init__


class AlternatingDR(Alternating, DRLearner):
    __init__ = DRLearner.__init__


class AlternatingR(Alternating, RLearner):
    __init__ = RLearner.__init__


class AlternatingT(Alternating, TLearner):
    __init__ = TLearner.__init__


class AlternatingS(Alternating, SLearner):
    __init__ = SLearner.__init__


class AlternatingX(Alternating, XLearner):
    __init__ = XLearner.__init__


LINE = LinearRegression()
SETTINGS = {"outcome": LINE, "effect_model": LINE, "propensity": LogisticRegression(), "cv": 2}
LEARNERS = [
    AlternatingPseudoOutcome(**SETTINGS),
    AlternatingDR(**SETTINGS),
    AlternatingR(**SETTINGS),
    AlternatingT(LINE),
    AlternatingS(LINE),
    AlternatingX(LINE),
]
# Rows that are copied or left out change the turn of those after them: the treatment is another one.
NOT_FOR_TURNS = {"check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"}


def checks():
    for learner in LEARNERS:
        for own, check in estimator_checks_generator(learner):
            name = getattr(check, "func", check).__name__
            if name not in NOT_FOR_TURNS:
                yield pytest.param(own, check, id=f"{type(learner).__name__} {name}")


@pytest.mark.parametrize(("learner", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_check(learner, check):
    check(learner)


def test_weights_equal_copies():
    """Weights of rows act as copies of rows, where nothing is drawn at random."""
    rng = np.random.default_rng(0)
    X, t, w = rng.normal(size=(60, 2)), rng.integers(2, size=60), rng.integers(0, 3, size=60)
    y = X[:, 0] + t * X[:, 1] + rng.normal(size=60)
    copies = np.repeat(np.arange(60), w)
    for learner in (TLearner(LINE), SLearner(LINE), XLearner(LINE, propensity=0.5)):
        weighted = learner.fit(X, y, treatment=t, sample_weight=w).effect(X)
        copied = learner.fit(X[copies], y[copies], treatment=t[copies]).effect(X)
        np.testing.assert_allclose(weighted, copied, atol=1e-9)


LINE_AND_LOGIT = Candidate("linear", LINE, LogisticRegression())
SETTINGS_ONLY = [
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
]


@pytest.mark.parametrize("check", SETTINGS_ONLY)
@pytest.mark.parametrize(
    "estimator",
    [EvolvedFeatures(), InvalidIVATE(), SelectiveEstimator(DoublyRobustAverage(), [LINE_AND_LOGIT])],
    ids=lambda estimator: type(estimator).__name__,
)
def test_settings_are_those_of_scikit_learn(estimator, check):
    """These need a treatment, or an instrument, that no generic data have: what does not fit is checked."""
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


SIGNATURE = ["self", "X", "y", "treatment", "instrument", "sample_weight", "groups"]
ESTIMATORS = [
    PseudoOutcomeLearner,
    DRLearner,
    RLearner,
    TLearner,
    SLearner,
    XLearner,
    InvalidIVATE,
    SelectiveEstimator,
    EvolvedFeatures,
]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_one_signature_everywhere(kind):
    parameters = inspect.signature(kind.fit).parameters
    assert list(parameters) == SIGNATURE
    assert all(parameters[name].kind == inspect.Parameter.KEYWORD_ONLY for name in SIGNATURE[3:])
