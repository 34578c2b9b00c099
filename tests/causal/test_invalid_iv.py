"""The average effect with an invalid instrument: exact enumeration of its robustness, invariances, bad input."""

import itertools

import numpy as np
import pytest
import sklearn
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal import (
    Candidate,
    DoublyRobustAverage,
    DRLearner,
    InvalidIVATE,
    InvalidIVAverage,
    SelectiveEstimator,
    WeakIdentificationError,
    pseudo_risk,
)
from poise.causal.invalid_iv.influence import SUFFICIENT_SETS, influence, relevance
from poise.causal.invalid_iv.nuisances import floored_relevance

from .simulations import confounded, instrumented

LINE, LOGIT = LinearRegression(), LogisticRegression()
NAMES = ("pi", "mu", "beta", "theta", "omega")


def linear(**settings):
    return InvalidIVATE(LINE, LOGIT, LOGIT, random_state=0, **settings)


# --- the influence function, by exact enumeration of a small population


def population():
    """Every cell of x, z, u, a with its probability, and the mean outcome in it; noise of y adds nothing to means."""
    pi, px = np.array([0.3, 0.6]), np.array([0.4, 0.6])
    beta = np.array([1.0, -0.5])
    cells = []
    for x, z, u, a in itertools.product((0, 1), repeat=4):
        treated = (0.55 - 0.1 * x if z else 0.15 + 0.05 * x) + 0.08 * (2 * u - 1)
        p = px[x] * (pi[x] if z else 1 - pi[x]) * 0.5 * (treated if a else 1 - treated)
        y = 0.2 + x + 0.7 * z * (1 + x) + beta[x] * a + 1.5 * (2 * u - 1)
        cells.append((x, z, a, y, p))
    return np.array(cells), pi, beta, px


CELLS, PI, BETA, PX = population()
X, Z, A, Y, P = CELLS[:, 0].astype(int), CELLS[:, 1].astype(int), CELLS[:, 2], CELLS[:, 3], CELLS[:, 4]


def given(x, z, values):
    rows = (x == X) & (z == Z)
    return values[rows] @ P[rows] / P[rows].sum()


MU = np.array([[given(x, z, A) for z in (0, 1)] for x in (0, 1)])
THETA = np.array([[given(x, z, Y - BETA[x] * A) for z in (0, 1)] for x in (0, 1)])
OMEGA = np.array([given(x, 0, (A - MU[x, 0]) * (Y - BETA[x] * A)) for x in (0, 1)])
TRUTH = BETA @ PX


def mean_influence(right):
    """The mean with the nuisances of ``right`` true and the others wrong."""
    pi = PI if "pi" in right else np.array([0.5, 0.4])
    mu = MU if "mu" in right else np.array([[0.3, 0.45], [0.25, 0.6]])
    beta = BETA if "beta" in right else np.array([0.4, 0.9])
    theta = THETA if "theta" in right else np.array([[0.1, 1.0], [-0.4, 0.3]])
    omega = OMEGA if "omega" in right else np.array([0.3, -0.2])
    d = relevance(mu[X, 1], mu[X, 0])
    return influence(Y, A, Z, pi[X], mu[X, Z], d, beta[X], theta[X, Z], omega[X]) @ P


def test_confounding_is_the_same_with_and_without_the_instrument():
    other = [given(x, 1, (A - MU[x, 1]) * (Y - BETA[x] * A)) for x in (0, 1)]
    np.testing.assert_allclose(OMEGA, other, atol=1e-12)
    covariance = np.array([[given(x, z, (A - MU[x, z]) * Y) for z in (0, 1)] for x in (0, 1)])
    d = relevance(MU[:, 1], MU[:, 0])
    np.testing.assert_allclose((covariance[:, 1] - covariance[:, 0]) / d, BETA, atol=1e-12)


@pytest.mark.parametrize(
    "right",
    [set(c) for k in range(6) for c in itertools.combinations(NAMES, k)],
    ids=lambda names: "-".join(sorted(names)),
)
def test_the_mean_is_right_for_the_sufficient_sets_and_for_no_other(right):
    enough = any(chosen <= right for chosen in SUFFICIENT_SETS)
    assert (abs(mean_influence(right) - TRUTH) < 1e-10) == enough


def test_relevance_is_the_difference_of_variances():
    mu1, mu0 = np.array([0.5, 0.2]), np.array([0.1, 0.7])
    np.testing.assert_allclose(relevance(mu1, mu0), mu1 * (1 - mu1) - mu0 * (1 - mu0))
    found = floored_relevance(np.array([0.5, 0.3]), np.array([0.495, 0.1]))
    assert found.outside.tolist() == [True, False]
    assert abs(found.values[0]) == pytest.approx(0.02)


# --- the estimator


def test_the_effect_is_found_where_two_stage_least_squares_is_wrong():
    x, y, a, z = instrumented(n=6000)
    estimator = linear().fit(x, y, treatment=a, instrument=z)
    low, high = estimator.conf_int()
    assert low < 1 < high
    assert high - low < 0.8
    estimates = {row[0]: row[1] for row in estimator.diagnostics().blocks[0].rows}
    assert abs(estimates["two-stage least squares"] - 1) > 1
    np.testing.assert_allclose(estimator.effect(x), estimator.beta_(x))
    assert np.corrcoef(estimator.effect(x), 1 + x[:, 0])[0, 1] > 0.8
    assert estimator.ate().estimate == estimator.ate_


@pytest.mark.slow
def test_intervals_cover():
    covered = 0
    for seed in range(20):
        x, y, a, z = instrumented(n=2000, seed=seed)
        low, high = linear().fit(x, y, treatment=a, instrument=z).conf_int()
        covered += low <= 1 <= high
    assert covered >= 17


@pytest.fixture(scope="module")
def fitted():
    x, y, a, z = instrumented()
    return x, y, a, z, linear().fit(x, y, treatment=a, instrument=z)


def test_what_covariates_add_does_not_matter(fitted):
    x, y, a, z, base = fitted
    moved = linear().fit(x, y + 5 * x[:, 1] - 3, treatment=a, instrument=z)
    assert moved.ate_ == pytest.approx(base.ate_, abs=1e-8)


def test_outcomes_scale(fitted):
    x, y, a, z, base = fitted
    scaled = linear().fit(x, -3 * y, treatment=a, instrument=z)
    assert scaled.ate_ == pytest.approx(-3 * base.ate_, rel=1e-8)
    assert scaled.stderr_ == pytest.approx(3 * base.stderr_, rel=1e-8)


def test_a_direct_effect_of_the_instrument_does_not_matter(fitted):
    x, y, a, z, base = fitted
    assert linear().fit(x, y + 2 * z, treatment=a, instrument=z).ate_ == pytest.approx(base.ate_, abs=1e-8)


def test_an_added_effect_is_added():
    """Up to the error of nuisances, which are means of two cells here."""
    rng = np.random.default_rng(0)
    _, y, a, z = instrumented(n=4000)
    cell = rng.integers(0, 2, size=(4000, 1)).astype(float)
    means = {"treatment_model": LogisticRegression(C=np.inf), "instrument_model": LogisticRegression(C=np.inf)}
    base = InvalidIVATE(LINE, **means, random_state=0).fit(cell, y, treatment=a, instrument=z)
    moved = InvalidIVATE(LINE, **means, random_state=0).fit(cell, y + 3 * a, treatment=a, instrument=z)
    assert moved.ate_ - base.ate_ == pytest.approx(3, abs=0.02)


def test_relabelling_the_instrument_changes_nothing(fitted):
    x, y, a, z, base = fitted
    swapped = linear().fit(x, y, treatment=a, instrument=1 - z)
    assert swapped.ate_ == pytest.approx(base.ate_, abs=0.05)
    np.testing.assert_allclose(np.median(swapped.D_), -np.median(base.D_), rtol=0.05)


def test_without_confounding_it_agrees_with_the_doubly_robust_average():
    x, y, a, z = instrumented(n=6000, confounding=0.0)
    estimator = linear().fit(x, y, treatment=a, instrument=z)
    both = np.column_stack([x, z])  # the direct effect makes the instrument a confounder here
    plain = DRLearner(outcome=LINE, propensity=LOGIT, effect_model=LINE, random_state=0).fit(both, y, treatment=a).ate()
    assert abs(estimator.ate_ - plain.estimate) < 2 * np.hypot(estimator.stderr_, plain.stderr)


def test_one_sided_non_compliance_is_said():
    x, y, a, z = instrumented(n=4000)
    a = a * z
    estimator = linear().fit(x, y, treatment=a, instrument=z)
    assert estimator.one_sided_
    assert set(estimator.omega_) == {0.0}
    assert "Nobody is treated without the instrument" in estimator.diagnostics().summary


def test_repetitions_take_the_median(fitted):
    x, y, a, z, _ = fitted
    once = [InvalidIVATE(LINE, LOGIT, LOGIT, random_state=s).fit(x, y, treatment=a, instrument=z) for s in range(3)]
    thrice = linear(n_rep=3).fit(x, y, treatment=a, instrument=z)
    assert min(e.stderr_ for e in once) < 1.2 * thrice.stderr_
    again = linear(n_rep=3).fit(x, y, treatment=a, instrument=z)
    assert (again.ate_, again.stderr_) == (thrice.ate_, thrice.stderr_)


def test_the_instrument_passes_through_pipelines(fitted):
    x, y, a, z, base = fitted
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), linear()).fit(x, y, treatment=a, instrument=z)
    assert pipeline[-1].ate_ == pytest.approx(base.ate_, abs=0.02)
    basis = linear(effect_basis=lambda x: np.ones((len(x), 1))).fit(x, y, treatment=a, instrument=z)
    assert np.ptp(basis.effect(x)) < 1e-12


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"instrument": None}, ValueError, "instrument must be given"),
        ({"instrument": np.zeros(3000)}, ValueError, "instrument must have at least two arms"),
        ({"instrument": np.arange(3000) % 3}, ValueError, "instrument must be binary"),
        ({"instrument": np.linspace(0, 1, 3000)}, ValueError, "instrument must hold labels"),
        ({"instrument": np.arange(10) % 2}, ValueError, "one label for each of 3000 rows, got 10"),
        ({"treatment": np.arange(3000) % 3}, ValueError, "treatment must be binary, got 3 arms"),
        ({"y": np.full(3000, np.nan)}, ValueError, "NaN"),
        ({"effect_basis": "cubic"}, ValueError, "effect_basis must be"),
        ({"n_rep": 0}, ValueError, "n_rep must be at least 1"),
        ({"clip": 0.7}, ValueError, "clip must lie in"),
        ({"treatment_model": LINE}, TypeError, "must be a classifier"),
    ],
)
def test_bad_input_is_named(change, error, message, fitted):
    x, y, a, z, _ = fitted
    passed = {"y": y, "treatment": a, "instrument": z, **{k: v for k, v in change.items() if k in FIT}}
    with pytest.raises(error, match=message):
        InvalidIVATE(**{"outcome": LINE, **{k: v for k, v in change.items() if k not in FIT}}).fit(x, **passed)


FIT = ("y", "treatment", "instrument")


def test_treatments_that_do_not_vary_enough_are_refused(fitted):
    x, y, a, z, _ = fitted
    with pytest.raises(ValueError, match="constant there"):
        linear().fit(x, y, treatment=np.where(z == 1, 1, a), instrument=z)
    rare = np.where((z == 0) & (np.cumsum((z == 0) & (a == 1)) > 20), 0, a)
    with pytest.raises(ValueError, match="at least 50 rows"):
        linear().fit(x, y, treatment=rare, instrument=z)


def test_a_weak_instrument_is_refused_unless_allowed(fitted):
    x, y, a, _, _ = fitted
    noise = np.random.default_rng(0).integers(2, size=3000)
    with pytest.raises(WeakIdentificationError, match="allow_weak"):
        linear().fit(x, y, treatment=a, instrument=noise)
    with pytest.warns(UserWarning, match="the instrument is weak"):
        found = linear(allow_weak=True).fit(x, y, treatment=a, instrument=noise)
    assert "weak" in found.diagnostics().summary


# --- the choice between learners

GOOD = Candidate("linear", LINE, LOGIT)
COPY = Candidate("linear again", LINE, LOGIT)
POOR = Candidate("constant", DummyRegressor(), DummyClassifier(strategy="prior"))


def test_pseudo_risk_by_hand():
    psi = np.array([[1.0, 2.0], [1.5, 4.0]])
    mixed = pseudo_risk(psi, ["pi", "mu"], [frozenset({"pi"}), frozenset({"mu"})])
    np.testing.assert_allclose(mixed, [[1 + 0.25, 1 + 4], [6.25 + 0.25, 6.25 + 4]])
    largest = pseudo_risk(psi, ["pi", "mu"], [frozenset({"pi"}), frozenset({"mu"})], "minimax")
    np.testing.assert_allclose(largest, [[1, 4], [6.25, 6.25]])


def test_one_candidate_leaves_no_choice(fitted):
    x, y, a, z, _ = fitted
    chosen = SelectiveEstimator(InvalidIVAverage(), [GOOD], random_state=0).fit(x, y, treatment=a, instrument=z)
    assert chosen.table_["risk"] == [0.0]
    assert chosen.ate_ == pytest.approx(linear().fit(x, y, treatment=a, instrument=z).ate_, abs=0.05)
    assert chosen.ate().estimate == chosen.ate_


def test_a_copy_of_a_candidate_changes_nothing():
    X, y, t, _ = confounded(n=1000)
    settings = {"functional": DoublyRobustAverage(), "random_state": 0}
    once = SelectiveEstimator(candidates=[GOOD, POOR], **settings).fit(X, y, treatment=t)
    twice = SelectiveEstimator(candidates=[GOOD, POOR, COPY], **settings).fit(X, y, treatment=t)
    assert once.ate_ == pytest.approx(twice.ate_, abs=1e-12)


@pytest.mark.parametrize("criterion", ["mixed-minimax", "minimax"])
def test_the_right_learners_are_chosen(criterion):
    X, y, t, tau = confounded(n=3000)
    chosen = SelectiveEstimator(DoublyRobustAverage(), [POOR, GOOD], criterion=criterion, random_state=0)
    chosen.fit(X, y, treatment=t)
    assert "linear" in chosen.best_.values()
    assert abs(chosen.ate_ - tau.mean()) < 3 * chosen.stderr_
    both_poor = next(
        e for p, m, e in zip(*(chosen.table_[k] for k in ("pi", "mu", "estimate")), strict=True) if p == m == "constant"
    )
    assert abs(both_poor - tau.mean()) > 5 * abs(chosen.ate_ - tau.mean())
    low, high = chosen.bootstrap_interval(draws=50)
    assert low < chosen.ate_ < high
    assert chosen.bootstrap_interval(draws=50) == (low, high)
    assert "combinations" in chosen.report().summary


def test_candidates_that_clip_are_left_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2))
    t = (rng.random(600) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    y = X[:, 0] + t + rng.normal(size=600)
    certain = Candidate("certain", LINE, make_pipeline(StandardScaler(with_std=False), LogisticRegression(C=1e-12)))
    sure = Candidate("sure", LINE, SureClassifier())
    chosen = SelectiveEstimator(DoublyRobustAverage(), [GOOD, sure, certain], random_state=0).fit(X, y, treatment=t)
    assert chosen.screened_ == {"pi": ["sure"], "mu": []}
    kept = SelectiveEstimator(DoublyRobustAverage(), [GOOD, sure], screen=False, random_state=0).fit(X, y, treatment=t)
    assert kept.screened_ == {"pi": [], "mu": []}


class SureClassifier(DummyClassifier):
    """Says 0 or 1 with certainty."""

    def predict_proba(self, X):
        one = (X[:, 0] > 0).astype(float)
        return np.column_stack([1 - one, one])


def test_a_smooth_choice_lies_between():
    X, y, t, _ = confounded(n=600)
    settings = {"functional": DoublyRobustAverage(), "candidates": [GOOD, POOR], "random_state": 0}
    hard = SelectiveEstimator(**settings).fit(X, y, treatment=t)
    cold, hot = (
        SelectiveEstimator(**settings, temperature=t).fit(X, y, treatment=_t) for t, _t in ((1e-9, t), (1e9, t))
    )
    assert cold.ate_ == pytest.approx(hard.ate_)
    assert hot.ate_ == pytest.approx(np.mean(hard.table_["estimate"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": {"pi": [GOOD]}}, "none for 'mu'"),
        ({"candidates": {"pi": [GOOD], "mu": [GOOD], "nu": [GOOD]}}, "did you mean|'nu'"),
        ({"candidates": [GOOD, GOOD]}, "different names"),
        (
            {"candidates": {"pi": [GOOD], "mu": [Candidate("linear", DummyRegressor(), LOGIT)]}},
            "one name must be the same",
        ),
        ({"criterion": "best"}, "criterion must be one of"),
        ({"candidates": [Candidate(str(i), LINE, LOGIT) for i in range(65)]}, "at most 4096"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(change, message):
    X, y, t, _ = confounded(n=100)
    settings = {"functional": DoublyRobustAverage(), "candidates": [GOOD], **change}
    with pytest.raises(ValueError, match=message):
        SelectiveEstimator(**settings).fit(X, y, treatment=t)
