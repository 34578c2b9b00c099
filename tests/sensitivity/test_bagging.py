"""Bags: constants, guarantees, leave-one-out outputs without training, scikit-learn's forests."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import BaggingClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from poise.sensitivity import (
    Bernoulli,
    Bootstrap,
    PoissonBootstrap,
    StableBaggingClassifier,
    StableBaggingRegressor,
    Subsample,
    bags_needed,
    from_sklearn,
    guaranteed_change,
    guaranteed_fraction,
    leave_one_out_stability,
    stability_constant,
)

X, Y = load_diabetes(return_X_y=True)
NEW = X[120:140]
X, Y = X[:120], Y[:120]
XC, YC = load_breast_cancer(return_X_y=True)
XC, YC = XC[:120], YC[:120]


@pytest.mark.parametrize(
    ("scheme", "constant"),
    [
        (Subsample(250), 1.0020040),
        (Bootstrap(500), 1.7230111),
        (PoissonBootstrap(500), np.e - 1),
        (Bernoulli(0.5), 1.0),
    ],
)
def test_constants_of_500_rows(scheme, constant):
    assert stability_constant(scheme, 500) == pytest.approx(constant, abs=1e-6)


@pytest.mark.parametrize("scheme", [Subsample(6), Bootstrap(9), PoissonBootstrap(9), Bernoulli(0.4)])
def test_probabilities_of_rows_are_those_of_draws(scheme):
    rng = np.random.default_rng(0)
    inside = np.stack([scheme.draw(12, rng) > 0 for _ in range(20_000)])
    assert inside.mean() == pytest.approx(scheme.p(12), abs=0.005)
    covariance = np.cov(inside[:, 0], inside[:, 1])[0, 1]
    assert -covariance == pytest.approx(scheme.q(12), abs=0.006)


def test_the_guarantee_of_a_published_setting():
    assert guaranteed_change(Subsample(250), 500, 0.1) == pytest.approx(0.07078150)
    assert guaranteed_fraction(Subsample(250), 500, 0.07078150) == pytest.approx(0.1)


@given(st.floats(0.02, 0.5), st.integers(50, 5000), st.integers(20, 100_000))
def test_guarantees_in_both_directions_agree(delta, n, bags):
    scheme = Subsample(n // 2)
    eps = guaranteed_change(scheme, n, delta, bags)
    assert guaranteed_fraction(scheme, n, eps, bags) == pytest.approx(delta, rel=1e-6)
    needed = bags_needed(scheme, n, 2 * eps, delta)
    assert guaranteed_change(scheme, n, delta, needed) <= 2 * eps


def test_more_bags_tend_to_the_limit():
    added = [
        guaranteed_change(Subsample(50), 100, 0.1, b) - guaranteed_change(Subsample(50), 100, 0.05)
        for b in (1000, 2000)
    ]
    assert (added[0] / added[1]) ** 2 == pytest.approx(2)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_all_subsets_of_six_rows(outputs):
    """Exact enumeration: the squared changes are bounded by the variance, the largest change by p."""
    subsets = np.array([[i in chosen for i in range(6)] for chosen in combinations(range(6), 3)])
    outputs = np.array(outputs)
    change = np.array([outputs.mean() - outputs[~subsets[:, i]].mean() for i in range(6)])
    constant = stability_constant(Subsample(3), 6)
    assert (change**2).sum() <= outputs.var() * constant + 1e-12
    assert np.abs(change).max() <= 0.5 * np.ptp(outputs) + 1e-12
    linear = subsets @ np.arange(6.0)
    exact = np.array([linear.mean() - linear[~subsets[:, i]].mean() for i in range(6)])
    assert (exact**2).sum() == pytest.approx(linear.var() * constant)


def test_leave_one_out_predictions_are_averages_over_the_other_bags():
    bag = StableBaggingRegressor(n_estimators=40, random_state=0).fit(X, Y)
    left = bag.loo_predictions(X[:5])
    outputs = np.stack([member.predict(X[:5]) for member in bag.estimators_])
    for row in range(len(X)):
        assert left[row] == pytest.approx(outputs[~bag.membership_[:, row]].mean(0), abs=1e-12)
    probability = StableBaggingClassifier(n_estimators=30, random_state=0).fit(XC, YC).loo_predictions(XC[:3])
    assert probability.shape == (120, 3, 2)
    assert probability.sum(-1) == pytest.approx(np.ones((120, 3)))


def test_constant_and_affine_learners():
    constant = StableBaggingRegressor(DummyRegressor(strategy="constant", constant=3.0), n_estimators=20).fit(X, Y)
    assert leave_one_out_stability(constant, X[:4]).change == pytest.approx(np.zeros((120, 4)))
    plain, scaled = (
        leave_one_out_stability(StableBaggingRegressor(Ridge(), n_estimators=30, random_state=0).fit(X, y), X[:4])
        for y in (Y, -3 * Y + 7)
    )
    assert scaled.change == pytest.approx(plain.change)  # in units of the range


def test_the_bag_stays_within_its_bound_and_the_tree_does_not():
    bag = StableBaggingRegressor(n_estimators=400, random_state=0).fit(X, Y)
    found = leave_one_out_stability(bag, NEW)
    squares = (found.change**2).sum(0)
    assert (squares <= found.variance_bound + 3 * found.noise_floor).all()
    assert (found.variance_bound <= found.bound + 1e-12).all()
    for eps in (0.1, 0.2):
        assert found.fraction_above(eps).max() <= guaranteed_fraction(bag.scheme_, 120, eps)
    tree = DecisionTreeRegressor(random_state=0).fit(X, Y).predict(NEW)
    without = np.stack(
        [
            DecisionTreeRegressor(random_state=0).fit(np.delete(X, i, 0), np.delete(Y, i)).predict(NEW)
            for i in range(120)
        ]
    )
    change = np.abs(without - tree) / bag.output_range(NEW)
    assert (change > 0.2).mean(0).max() > guaranteed_fraction(bag.scheme_, 120, 0.2)


def test_a_weight_of_two_is_the_row_twice():
    weight = np.ones(120, int)
    weight[[3, 7]] = 2
    rows = np.repeat(np.arange(120), weight)
    weighted = StableBaggingRegressor(Ridge(), n_estimators=20, random_state=0).fit(X, Y, sample_weight=weight)
    doubled = StableBaggingRegressor(Ridge(), n_estimators=20, random_state=0).fit(X[rows], Y[rows])
    assert (weighted.predict(X) == doubled.predict(X)).all()
    assert weighted.n_rows_ == 122


def test_clipping_bounds_what_an_outlier_can_do():
    class Wild(DecisionTreeRegressor):
        def predict(self, X):
            return super().predict(X) + (1e9 if self.random_state % 7 == 0 else 0)

    bag = StableBaggingRegressor(Wild(), n_estimators=20, clip="range", random_state=0).fit(X, Y)
    assert Y.min() <= bag.predict(X).min() <= bag.predict(X).max() <= Y.max()
    ordered = StableBaggingRegressor(n_estimators=5, clip=("order", 10), random_state=0).fit(X, Y)
    assert ordered.clip_interval_ == (np.sort(Y)[9], np.sort(Y)[-10])


@pytest.mark.parametrize(
    "ensemble",
    [
        RandomForestRegressor(40, random_state=0),
        RandomForestClassifier(40, random_state=0),
        BaggingClassifier(n_estimators=40, max_features=0.5, random_state=0),
    ],
)
def test_a_fitted_forest_is_taken_over_without_training(ensemble):
    classes = hasattr(ensemble, "predict_proba")
    rows, target = (XC, YC + 1) if classes else (X, Y)
    fitted = ensemble.fit(rows, target)
    bag = from_sklearn(fitted)
    assert bag.estimators_[0] is fitted.estimators_[0] or hasattr(bag.estimators_[0], "columns")
    ours, theirs = (getattr(m, "predict_proba" if classes else "predict")(rows) for m in (bag, fitted))
    assert ours == pytest.approx(theirs, abs=1e-12)
    # About a third of the rows are outside each bag of as many draws.
    assert (~bag.membership_).mean() == pytest.approx(1 - bag.scheme_.p(len(rows)), abs=0.03)
    assert bag.loo_predictions(rows[:2]).shape[0] == len(rows)


@parametrize_with_checks(
    [StableBaggingRegressor(n_estimators=5, random_state=0), StableBaggingClassifier(n_estimators=5, random_state=0)],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "without replacement a weight of 0 is an error",
        "check_classifiers_one_label_sample_weights": "without replacement a weight of 0 is an error",
        "check_fit2d_1sample": "a bag of one row is impossible",
    },
)
def test_scikit_learn_takes_them_for_estimators(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: StableBaggingRegressor(max_samples=1.0).fit(X, Y), ValueError, "every bag would hold every row"),
        (lambda: StableBaggingRegressor(max_samples=2.0).fit(X, Y), ValueError, "max_samples must be"),
        (lambda: StableBaggingRegressor(resampling="jackknife").fit(X, Y), ValueError, "resampling must be one of"),
        (lambda: StableBaggingRegressor(clip=(2, 1)).fit(X, Y), ValueError, "low < high"),
        (
            lambda: StableBaggingClassifier(RidgeClassifier()).fit(XC, YC),
            TypeError,
            "predict_proba, got RidgeClassifier",
        ),
        (
            lambda: StableBaggingRegressor().fit(X, Y, sample_weight=np.arange(120)),
            ValueError,
            "got 0 for row 0: leave it out",
        ),
        (lambda: StableBaggingRegressor().fit(X, Y, sample_weight=np.full(120, 0.5)), ValueError, "whole numbers"),
        (lambda: from_sklearn(Ridge().fit(X, Y)), TypeError, "estimators_samples_"),
        (lambda: from_sklearn(ExtraTreesRegressor(3).fit(X, Y)), ValueError, "set bootstrap=True"),
        (lambda: guaranteed_change(Subsample(5), 10, 0), ValueError, "delta must be in"),
        (lambda: guaranteed_fraction(Subsample(5), 10, 0), ValueError, "eps must be above 0"),
        (lambda: bags_needed(Subsample(50), 100, 0.01, 0.1), ValueError, "no number of bags suffices"),
        (lambda: stability_constant(Bernoulli(1.0), 9), ValueError, "rate must be in"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_row_in_every_bag_is_named():
    bag = StableBaggingRegressor(Ridge(), n_estimators=20, random_state=0).fit(X, Y)
    bag.membership_[:, 0] = True
    with pytest.raises(ValueError, match="every bag holds row 0: take more bags"):
        bag.loo_predictions(X[:2])


def test_an_output_that_is_not_finite_names_its_bag():
    class Broken(DecisionTreeRegressor):
        def predict(self, X):
            return super().predict(X) * np.nan

    bag = StableBaggingRegressor(Broken(), n_estimators=3, random_state=0).fit(X, Y)
    with pytest.raises(ValueError, match="from bag 0"):
        bag.predict(X)
