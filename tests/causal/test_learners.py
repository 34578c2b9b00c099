"""Learners of effects: known effects, known identities, bad input."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sklearn
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal import DRLearner, PseudoOutcomeLearner, RLearner, SLearner, TLearner, XLearner, weight_report
from poise.causal.nuisances.propensity import clip_propensity

from .simulations import confounded

LINE, LOGIT = LinearRegression(), LogisticRegression()
LINEAR = {"outcome": LINE, "propensity": LOGIT, "effect_model": LINE}


def linear_learners():
    return [
        DRLearner(**LINEAR, random_state=0),
        DRLearner(None, **LINEAR, random_state=0),
        DRLearner("ivw-hetero", **LINEAR, random_state=0),
        RLearner(**LINEAR, random_state=0),
        PseudoOutcomeLearner("cov", **LINEAR, random_state=0),
        DRLearner(**LINEAR, cf_order=3, random_state=0),
        DRLearner(**LINEAR, cf_order=4, random_state=0),
        TLearner(LINE),
        XLearner(LINE, propensity=LOGIT),
    ]


def name_of(learner):
    parts = [getattr(learner, key, "") for key in ("pseudo", "weights", "cf_order")]
    return " ".join([type(learner).__name__, *map(str, parts)])


@pytest.mark.parametrize("learner", linear_learners(), ids=name_of)
def test_a_linear_effect_is_found(learner):
    X, y, t, tau = confounded(n=4000)
    learner.fit(X, y, treatment=t)
    assert np.sqrt(np.mean((learner.effect(X) - tau) ** 2)) < 0.2
    assert np.array_equal(learner.effect(X), learner.predict(X))
    assert np.array_equal(learner.effect(X), learner.const_marginal_effect(X))
    assert learner.ate().estimate == pytest.approx(tau.mean(), abs=0.15)


def test_weights_that_know_the_arm_steady_u_more_than_those_that_do_not():
    X, y, t, tau = confounded(n=4000)
    errors = []
    for weights in ("ivw", "ivw-covariates"):
        learner = PseudoOutcomeLearner("u", weights, **LINEAR, random_state=0).fit(X, y, treatment=t)
        errors.append(np.sqrt(np.mean((learner.effect(X) - tau) ** 2)))
    assert errors[0] < errors[1] < 0.4


def test_the_single_learner_finds_a_constant_effect():
    X, y, t, _ = confounded(n=4000, slope=0.0)
    learner = SLearner(LINE).fit(X, y, treatment=t)
    assert learner.effect(X[:3]) == pytest.approx([1, 1, 1], abs=0.15)


def test_averages_have_intervals_that_cover():
    covered = {"population": 0, "overlap": 0}
    for seed in range(20):
        X, y, t, _ = confounded(n=600, seed=seed, slope=0.0)
        learner = DRLearner(**LINEAR, random_state=seed).fit(X, y, treatment=t)
        for average in (learner.ate(), learner.overlap_ate()):
            low, high = average.interval
            covered[average.target] += low <= 1 <= high
    assert min(covered.values()) >= 17
    assert learner.overlap_ate().stderr < learner.ate().stderr  # it leaves unlikely arms out of account


def test_the_r_learner_minimises_its_own_loss():
    """A linear effect by weighted regression of U is the least squares of outcome residual on treatment residual."""
    X, y, t, _ = confounded()
    learner = RLearner(**LINEAR, random_state=0).fit(X, y, treatment=t)
    pi = learner.nuisance_["propensity_1"]
    eta = pi * learner.nuisance_["outcome_1"] + (1 - pi) * learner.nuisance_["outcome_0"]
    design = np.column_stack([np.ones(len(X)), X]) * (t - pi)[:, None]
    direct = np.linalg.lstsq(design, y - eta, rcond=None)[0]
    fitted = np.array([learner.effects_[0].intercept_, *learner.effects_[0].coef_])
    np.testing.assert_allclose(fitted, direct, atol=1e-10)


def test_the_overlap_average_is_the_constant_of_the_r_learner():
    X, y, t, _ = confounded()
    learner = RLearner(**LINEAR, random_state=0).fit(X, y, treatment=t)
    pseudo = np.average(learner.pseudo_, weights=learner.weights_)
    assert learner.overlap_ate().estimate == pytest.approx(pseudo, rel=1e-10)


def test_affine_outcomes_and_swapped_arms():
    X, y, t, _ = confounded()
    base = DRLearner(**LINEAR, random_state=0).fit(X, y, treatment=t)
    scaled = DRLearner(**LINEAR, random_state=0).fit(X, 3 * y + 7, treatment=t)
    np.testing.assert_allclose(scaled.pseudo_, 3 * base.pseudo_, atol=1e-6)
    np.testing.assert_allclose(scaled.weights_, base.weights_)
    swapped = DRLearner(**LINEAR, control=1, random_state=0).fit(X, y, treatment=t)
    assert swapped.ate().estimate == pytest.approx(-base.ate().estimate, abs=1e-9)
    assert (swapped.ate().arm, swapped.ate().control) == (0, 1)


def test_standardised_weights_have_a_mean_of_one():
    X, y, t, _ = confounded()
    learner = DRLearner(**LINEAR, random_state=0).fit(X, y, treatment=t)
    assert learner.weights_.mean() == pytest.approx(1)
    size = learner.weights_.sum() ** 2 / np.sum(learner.weights_**2)
    assert weight_report(learner).meta["effective_sample_size"] == pytest.approx(size)
    raw = DRLearner(**LINEAR, standardize_weights=False, random_state=0).fit(X, y, treatment=t)
    pi = raw.nuisance_["propensity_1"]
    np.testing.assert_allclose(raw.weights_, pi * (1 - pi))


@pytest.mark.parametrize("cf_order", [2, 3, 4])
def test_a_row_is_never_in_its_own_nuisances(cf_order):
    X, y, t, _ = confounded(n=200)
    settings = {**LINEAR, "cf_order": cf_order, "random_state": 0}
    before = DRLearner(**settings).fit(X, y, treatment=t)
    changed = y.copy()
    changed[7] += 1000
    after = DRLearner(**settings).fit(X, changed, treatment=t)
    for name in ("outcome_0", "outcome_1"):
        assert after.nuisance_[name][7] == before.nuisance_[name][7]
        assert not np.array_equal(after.nuisance_[name], before.nuisance_[name])


def test_orders_three_and_four_train_nuisances_on_different_rows():
    X, y, t, _ = confounded(n=300)
    third = DRLearner(**LINEAR, cf_order=3, random_state=0).fit(X, y, treatment=t)._nuisances
    assert third.propensity.shape == (2, 300, 2)
    np.testing.assert_allclose(third.propensity.sum(-1), 1)
    np.testing.assert_array_equal(third.complement, third.propensity[..., 0])
    fourth = DRLearner(**LINEAR, cf_order=4, random_state=0).fit(X, y, treatment=t)._nuisances
    assert fourth.propensity.shape == (6, 300, 2)
    assert np.abs(fourth.complement - fourth.propensity[..., 0]).max() > 1e-3


def test_a_seed_reaches_learners_that_have_none():
    X, y, t, _ = confounded(n=300)
    forest = RandomForestRegressor(10)
    first, second = (DRLearner(outcome=forest, propensity=LOGIT, effect_model=LINE, random_state=3) for _ in range(2))
    first.fit(X, y, treatment=t), second.fit(X, y, treatment=t)
    assert first.ate().estimate == second.ate().estimate
    np.testing.assert_array_equal(first.effect(X), second.effect(X))
    third = clone(first).set_params(random_state=4).fit(X, y, treatment=t)
    assert third.ate().estimate != first.ate().estimate


def test_fitting_twice_is_fitting_once():
    X, y, t, _ = confounded(n=300)
    learner = DRLearner(**LINEAR, random_state=0)
    once = learner.fit(X, y, treatment=t).effect(X)
    np.testing.assert_array_equal(learner.fit(X, y, treatment=t).effect(X), once)


@pytest.mark.parametrize("learner", [DRLearner(**LINEAR, random_state=0), TLearner(LINE), XLearner(LINE)])
def test_pipelines_hand_the_treatment_on(learner):
    X, y, t, _ = confounded(n=300)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), learner).fit(X, y, treatment=t)
    alone = clone(learner).fit(StandardScaler().fit_transform(X), y, treatment=t)
    np.testing.assert_array_equal(pipeline.predict(X), alone.effect(StandardScaler().fit_transform(X)))


def test_pipelines_and_searches_are_learners_too():
    X, y, t, _ = confounded(n=300)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), RandomForestRegressor(5)), {"randomforestregressor__max_depth": [1, 2]}, cv=2
    )
    learner = DRLearner(
        outcome=search, propensity=LOGIT, effect_model=make_pipeline(StandardScaler(), LINE), random_state=0
    )
    assert np.isfinite(learner.fit(X, y, treatment=t, sample_weight=np.ones(300)).effect(X)).all()


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, pa.table], ids=["pandas", "polars", "arrow"])
def test_tables_of_all_kinds_give_the_same(frame):
    X, y, t, _ = confounded(n=300)
    columns = {name: X[:, i] for i, name in enumerate("abc")}
    learner = DRLearner(**LINEAR, random_state=0)
    expected = learner.fit(X, y, treatment=t).effect(X)
    series = {pd.DataFrame: pd.Series, pl.DataFrame: pl.Series, pa.table: pa.array}[frame]
    found = learner.fit(frame(columns), series(y), treatment=series(t))
    np.testing.assert_array_equal(found.effect(frame(columns)), expected)
    assert list(learner.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"column 'b'"):
        learner.fit(frame({**columns, "b": ["x"] * 300}), y, treatment=t)


@pytest.mark.parametrize("labels", [(False, True), ("no", "yes"), (1, 2), (0.0, 1.0)])
def test_labels_of_arms(labels):
    X, y, t, _ = confounded(n=300)
    learner = DRLearner(**LINEAR, random_state=0)
    expected = learner.fit(X, y, treatment=t).ate().estimate
    found = learner.fit(X, y, treatment=np.array(labels)[t]).ate()
    assert found.estimate == expected
    assert (found.control, found.arm) == labels


def test_two_arms_have_two_intervals():
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(1500, 2)), rng.integers(0, 3, size=1500)
    y = X[:, 0] + np.array([0.0, 0.0, 5.0])[t] + rng.normal(size=1500)
    learner = DRLearner(**LINEAR, random_state=0).fit(X, y, treatment=np.array(["none", "a", "b"])[t])
    assert list(learner.levels_) == ["a", "b", "none"]
    learner = DRLearner(**LINEAR, control="none", random_state=0).fit(X, y, treatment=np.array(["none", "a", "b"])[t])
    for averages in (learner.ate(), learner.overlap_ate()):
        assert set(averages) == {"a", "b"}
        for arm, truth in (("a", 0), ("b", 5)):
            low, high = averages[arm].interval
            assert low <= truth <= high
            assert high - low < 0.5
    assert learner.effect(X).shape == (1500, 2)
    with pytest.raises(ValueError, match="two arms for pseudo='u'"):
        RLearner(**LINEAR).fit(X, y, treatment=t)


def test_known_propensities_are_used_as_they_are():
    X, y, t, _ = confounded(n=300)
    known = 1 / (1 + np.exp(-X[:, 0]))
    learner = DRLearner(outcome=LINE, propensity=lambda x: 1 / (1 + np.exp(-x[:, 0])), effect_model=LINE)
    learner.fit(X, y, treatment=t)
    np.testing.assert_array_equal(learner.nuisance_["propensity_1"], known)
    half = DRLearner(outcome=LINE, propensity=0.001, effect_model=LINE).fit(X, y, treatment=t)
    assert half.n_clipped_ == 0
    assert set(half.nuisance_["propensity_1"]) == {0.001}


def test_a_known_propensity_of_one_is_counted_and_gives_no_infinity():
    X, y, t, _ = confounded(n=300)

    def certain(x):
        p = np.full(len(x), 0.5)
        p[0] = 1.0
        return p

    t[0] = 0
    learner = DRLearner(outcome=LINE, propensity=certain, effect_model=LINE)
    with pytest.warns(UserWarning, match=r"1 of 300 rows has a propensity outside \[0.01, 0.99\]"):
        learner.fit(X, y, treatment=t)
    assert learner.n_clipped_ == 1
    assert np.isfinite(learner.pseudo_).all()
    assert "1 row clipped" in weight_report(learner).summary


def test_clipped_rows_are_counted():
    found = clip_propensity(np.array([[0.999, 0.001], [0.5, 0.5]]), 0.01)
    assert found.n_clipped == 1
    np.testing.assert_allclose(found.values, [[0.99, 0.01], [0.5, 0.5]])
    known = clip_propensity(np.array([[0.999, 0.001], [1.0, 0.0]]), 0.01, known=True)
    assert known.n_clipped == 1
    np.testing.assert_allclose(known.values, [[0.999, 0.001], [0.99, 0.01]])


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_propensities_outside_of_0_and_1_are_refused(value):
    X, y, t, _ = confounded(n=100)
    with pytest.raises(ValueError, match=r"propensity must lie in \[0, 1\]"):
        DRLearner(outcome=LINE, propensity=lambda x: np.full(len(x), value), effect_model=LINE).fit(X, y, treatment=t)


def test_weights_of_rows_are_copies_of_rows():
    X, y, t, _ = confounded(n=300)
    weight = np.where(np.arange(300) < 100, 2.0, 1.0)
    learner = DRLearner(outcome=LINE, propensity=0.5, effect_model=LINE, random_state=0)
    learner.fit(X, y, treatment=t, sample_weight=weight)
    average = learner.ate()
    pseudo = learner.pseudo_
    assert average.estimate == pytest.approx(np.average(pseudo, weights=weight))
    same = DRLearner(outcome=LINE, propensity=0.5, effect_model=LINE, random_state=0)
    same.fit(X, y, treatment=t, sample_weight=10 * weight)
    assert same.ate().estimate == pytest.approx(average.estimate)
    assert same.ate().stderr == pytest.approx(average.stderr)
    np.testing.assert_allclose(learner.weights_ / weight, learner.weights_[0] / 2 * np.ones(300))  # known, constant nu


def test_groups_stay_together_and_widen_intervals():
    X, y, t, _ = confounded(n=600)
    copies = np.repeat(np.arange(600), 4)
    alone = DRLearner(**LINEAR, random_state=0).fit(X, y, treatment=t).ate()
    many = DRLearner(**LINEAR, random_state=0).fit(X[copies], y[copies], treatment=t[copies]).ate()
    grouped = DRLearner(**LINEAR, random_state=0)
    together = grouped.fit(X[copies], y[copies], treatment=t[copies], groups=copies).ate()
    assert many.stderr < 0.7 * alone.stderr  # copies taken for independent rows
    assert together.stderr == pytest.approx(alone.stderr, rel=0.15)
    for name in ("outcome_0", "propensity_1"):
        values = grouped.nuisance_[name].reshape(600, 4)
        np.testing.assert_allclose(values, values[:, :1] * np.ones((1, 4)))


def test_identical_rows_have_an_undefined_p_value():
    X = np.tile([[0.0], [0.0], [1.0], [1.0]], (10, 1))
    t = np.tile([0, 1, 0, 1], 10)
    y = t.astype(float)
    average = DRLearner(outcome=LINE, propensity=0.5, effect_model=LINE, random_state=0).fit(X, y, treatment=t).ate()
    assert average.estimate == pytest.approx(1)
    assert average.p_value is None or 0 <= average.p_value <= 1


class NoWeights(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        self.mean_ = np.mean(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.mean_)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"treatment": np.linspace(0, 1, 100)}, ValueError, "it is continuous"),
        ({"treatment": np.arange(100)}, ValueError, "at most 20 arms, got 100"),
        ({"treatment": np.zeros(100)}, ValueError, "at least two arms"),
        ({"treatment": np.eye(1, 100)[0]}, ValueError, "must have at least 5 rows"),
        ({"treatment": np.full(100, np.nan)}, ValueError, "missing labels"),
        ({"treatment": np.zeros(99)}, ValueError, "at least two arms|inconsistent"),
        ({"y": np.full(100, 2.0)}, ValueError, "y must vary"),
        ({"y": np.full(100, np.nan)}, ValueError, "NaN"),
        ({"X": np.full((100, 3), np.nan)}, ValueError, "NaN"),
        ({"sample_weight": -np.ones(100)}, ValueError, "sample_weight must be finite, not negative"),
        ({"sample_weight": np.ones(5)}, ValueError, "one weight for each of 100 rows, got 5"),
        ({"groups": np.ones(5)}, ValueError, "one label for each of 100 rows, got 5"),
        ({"groups": np.arange(100) % 2}, ValueError, "groups must be at least 5"),
        ({"instrument": np.zeros(100)}, ValueError, "instrument must be None for PseudoOutcomeLearner"),
        ({"cf_order": 5}, ValueError, "cf_order must be one of"),
        ({"pseudo": "x"}, ValueError, "pseudo must be one of"),
        ({"weights": "x"}, ValueError, "weights must be one of"),
        ({"clip": 0.5}, ValueError, "clip must lie in"),
        ({"cv": 1}, ValueError, "at least 2 folds"),
        ({"control": 2}, ValueError, "control must be one of"),
        ({"pseudo": "u", "weights": None}, ValueError, "allow_unstable"),
        ({"effect_model": KNeighborsRegressor()}, TypeError, "effect_model must be .*, got KNeighborsRegressor"),
        (
            {"effect_model": make_pipeline(StandardScaler(), NoWeights())},
            TypeError,
            "effect_model must be .* NoWeights",
        ),
        ({"propensity": LINE}, TypeError, "propensity must be a classifier"),
    ],
)
def test_bad_input_is_named(change, error, message):
    X, y, t, _ = confounded(n=100)
    passed = {"X": X, "y": y, "treatment": t, **{k: v for k, v in change.items() if k in FIT}}
    settings = {**LINEAR, **{k: v for k, v in change.items() if k not in FIT}}
    with pytest.raises(error, match=message):
        PseudoOutcomeLearner(**settings).fit(**passed)


FIT = ("X", "y", "treatment", "sample_weight", "groups", "instrument")


def test_unweighted_u_has_to_be_asked_for():
    X, y, t, _ = confounded(n=300)
    learner = PseudoOutcomeLearner("u", None, **LINEAR, allow_unstable=True, random_state=0)
    assert set(learner.fit(X, y, treatment=t).weights_) == {1.0}


def test_other_columns_and_no_fit_are_refused():
    X, y, t, _ = confounded(n=100)
    with pytest.raises(NotFittedError):
        DRLearner().effect(X)
    learner = DRLearner(**LINEAR).fit(X, y, treatment=t)
    with pytest.raises(ValueError, match="features"):
        learner.effect(X[:, :2])
    with pytest.raises(TypeError, match="PseudoOutcomeLearner"):
        weight_report(TLearner(LINE).fit(X, y, treatment=t))


def test_a_weight_report_says_where_the_weight_is():
    X, y, t, _ = confounded()
    report = weight_report(DRLearner(**LINEAR, random_state=0).fit(X, y, treatment=t))
    numbers, bins = report.blocks
    assert sum(row[1] for row in bins.rows) == len(X)
    assert sum(row[3] for row in bins.rows) == pytest.approx(100)
    ratio = dict(map(tuple, numbers.rows))["variance of the mean without over with weights"]
    assert ratio > 1
