"""Generators that see their own samples: contraction, correctors, augmentation, metrics."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from poise.loops import (
    AugmentedEstimator,
    ClassConditionalGaussian,
    GaussianGenerator,
    IdealMixture,
    LoopTrace,
    Projection,
    Reject,
    SelfConsumingLoop,
    allowed_ratio,
    contraction_factor,
    corrector_effect,
    duplicate_share,
    gaussian_mixture_theory,
    gaussian_w2,
    loop_metrics,
    nearest_reference,
    two_sample_distance,
)

EYE = np.eye(2)


def normal(n, rng):
    return rng.standard_normal((n, 2))


REAL = normal(50, np.random.default_rng(0))
HELD_OUT = normal(4000, np.random.default_rng(1))


# --- closed forms


def test_distances_of_gaussians():
    zero = np.zeros(2)
    assert gaussian_w2(zero, EYE, zero, 4 * EYE) == pytest.approx(np.sqrt(2))
    assert gaussian_w2(zero, EYE, np.array([3.0, 4.0]), EYE) == pytest.approx(5)
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    assert gaussian_w2(zero, a, zero, b) == pytest.approx(gaussian_w2(zero, b, zero, a))
    with pytest.raises(ValueError, match="cov_a must be positive semidefinite"):
        gaussian_w2(zero, -EYE, zero, EYE)
    with pytest.raises(ValueError, match="cov_b must be symmetric"):
        gaussian_w2(zero, EYE, zero, np.array([[1.0, 0.5], [0.0, 1.0]]))


def test_factors_and_allowed_ratios():
    assert contraction_factor(0.2) == pytest.approx(0.25)
    assert contraction_factor(0.2, 1) == pytest.approx(0.125)
    assert [allowed_ratio(gamma) for gamma in (0, 1, 5, np.inf)] == pytest.approx([1 / 2, 2 / 3, 6 / 7, 1])
    for gamma in (0.0, 0.5, 3.0):
        limit = allowed_ratio(gamma, smoothness=0.4)
        assert contraction_factor(limit, gamma, smoothness=0.4) == pytest.approx(1)
    assert contraction_factor(2.0) == np.inf


def test_the_trace_tells_the_factor_of_a_contraction():
    trace = LoopTrace({"x": 3 + 2 * 0.7 ** np.arange(20)})
    assert trace.factor("x", limit=3.0) == pytest.approx(0.7)
    assert np.isnan(LoopTrace({"x": np.ones(5)}).factor("x"))


@pytest.mark.parametrize(("gamma", "gap"), [(0, 5.0), (1, 3.75), (2, 2.7777), (5, 1.5277), (20, 0.4648)])
def test_theory_of_augmented_mixtures(gamma, gap):
    assert gaussian_mixture_theory(50, 10, gamma).gap == pytest.approx(gap, abs=1e-4)
    assert gaussian_mixture_theory(50, 10, gamma).excess >= 50 / 20


# --- self-consuming loops


def last(corrector=None, ratio=0.45, generations=30, **settings):
    loop = SelfConsumingLoop(GaussianGenerator(), ratio, corrector, generations, **settings)
    return loop.run(REAL, loop_metrics(HELD_OUT))


def test_a_corrected_loop_stays_nearer_to_the_truth():
    far, near = (
        np.mean([last(c, seed=s).statistics["distance"][10:].mean() for s in range(3)])
        for c in (None, IdealMixture(5, normal))
    )
    assert near < far


def test_samples_of_an_infinitely_corrected_loop_have_the_true_law():
    corrector = IdealMixture(np.inf, normal)
    samples = corrector(np.full((20_000, 2), 7.0), np.random.default_rng(0))
    assert samples.mean(0) == pytest.approx([0, 0], abs=0.03)
    assert np.cov(samples.T) == pytest.approx(EYE, abs=0.04)


def test_without_real_rows_the_variance_collapses_and_with_them_it_does_not():
    kept = last(ratio=0.4, generations=60).statistics["diversity"][-1]
    lost = last(ratio=1.0, generations=60, real=False).statistics["diversity"][-1]
    assert lost < 0.5 * kept


def test_no_correction_and_the_identity_are_the_same_bit_for_bit():
    same = last(Projection(lambda x: x, 0.0), generations=5).statistics["distance"]
    assert (same == last(generations=5).statistics["distance"]).all()


def test_a_ratio_of_zero_refits_the_real_rows():
    trace = last(ratio=0.0, generations=3)
    assert trace.provenance["model"].tolist() == [0, 0, 0, 0]
    assert np.ptp(trace.statistics["diversity"]) < 0.2


def test_linear_accumulation_keeps_the_first_part_of_old_generations():
    trace = last(ratio=0.4, generations=4, accumulate="linear")
    expected = [sum(int((i + 1) / t * 20) for i in range(t)) for t in range(1, 5)]
    assert trace.provenance["model"].tolist() == [0, *expected]


def test_projections_are_idempotent_and_rejection_keeps_what_is_valid():
    rng = np.random.default_rng(0)
    snap = nearest_reference(REAL)
    once = snap(HELD_OUT[:200], rng)
    assert (snap(once, rng) == once).all()
    samples = HELD_OUT[:500]
    kept = Reject(lambda x: x[:, 0] > 0, normal)(samples, rng)
    assert (kept[:, 0] > 0).all()
    assert (kept[samples[:, 0] > 0] == samples[samples[:, 0] > 0]).all()


def test_what_a_correction_does_is_measured_on_held_out_rows():
    samples = HELD_OUT[:2000] + np.array([1.0, 0.0])
    assert corrector_effect(IdealMixture(5, normal), samples, HELD_OUT[2000:]) == "helps"
    assert corrector_effect(Projection(lambda x: x), samples, HELD_OUT[2000:]) == "neutral"
    assert corrector_effect(Projection(lambda x: 0.5 * x), samples, HELD_OUT[2000:]) == "contracts diversity"
    assert corrector_effect(Projection(lambda x: x + np.array([2.0, 0.0])), samples, HELD_OUT[2000:]) == "hurts"


def test_generators_of_scikit_learn_run():
    loop = SelfConsumingLoop(GaussianMixture(2), 0.3, generations=2)
    assert len(loop.run(REAL, loop_metrics(HELD_OUT))) == 3


# --- augmentation


def two_classes(n=200, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.normal(size=(n, 3)) + y[:, None], y


def test_no_synthetic_rows_is_the_plain_estimator_and_so_is_no_weight():
    X, y = two_classes()
    plain = LogisticRegression().fit(X, y).predict_proba(X)
    generator = ClassConditionalGaussian(random_state=0)
    assert (AugmentedEstimator(LogisticRegression(), generator, 0).fit(X, y).predict_proba(X) == plain).all()
    tree = DecisionTreeClassifier(random_state=0)
    weightless = AugmentedEstimator(LogisticRegression(tol=1e-10, max_iter=1000), generator, 2, weight=0).fit(X, y)
    exact = LogisticRegression(tol=1e-10, max_iter=1000).fit(X, y).predict_proba(X)
    assert weightless.predict_proba(X) == pytest.approx(exact, abs=1e-5)
    assert AugmentedEstimator(tree, generator, 5, random_state=0).fit(X, y).estimator_.tree_.n_node_samples[0] == 1200


def test_the_mean_of_an_augmented_set_is_the_weighted_mean():
    X, y = two_classes()
    model = AugmentedEstimator(LogisticRegression(), ClassConditionalGaussian(), 3, random_state=0)
    rows, labels = model.synthetic_rows(X, y, 600)
    signs, synthetic = np.where(y, 1, -1), np.where(labels, 1, -1)
    theta = [(s[:, None] * r).mean(0) for s, r in ((signs, X), (synthetic, rows))]
    both = (np.concatenate([signs, synthetic])[:, None] * np.concatenate([X, rows])).mean(0)
    assert both == pytest.approx((theta[0] + 3 * theta[1]) / 4)


def test_the_pooled_variance_of_equal_classes_is_the_mean_of_their_variances():
    X, y = two_classes()
    pooled = ClassConditionalGaussian("diagonal").fit(X, y).covariance_
    expected = np.mean([X[y == c].var(0, ddof=1) for c in (0, 1)], axis=0)
    assert np.diag(pooled) == pytest.approx(expected)


def test_classes_are_drawn_in_their_proportions():
    X, y = two_classes(100)
    y = np.where(np.arange(100) < 30, 5, 9)
    assert np.unique(ClassConditionalGaussian().fit(X, y).sample(10)[1], return_counts=True)[1].tolist() == [3, 7]


def test_two_samples_can_be_told_apart_or_not():
    rng = np.random.default_rng(0)
    assert two_sample_distance(normal(400, rng), normal(400, rng)) < 0.1
    assert two_sample_distance(normal(400, rng) + 9, normal(400, rng)) == pytest.approx(1, abs=0.01)


def test_rows_of_the_training_set_are_recognised():
    assert duplicate_share(REAL[[0, 3, 3]], REAL) == 1
    assert duplicate_share(HELD_OUT[:100], REAL) == 0


@parametrize_with_checks(
    [AugmentedEstimator(LogisticRegression(), ClassConditionalGaussian(random_state=0), 1.0, random_state=0)],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "takes no sample weights",
    },
)
def test_scikit_learn_takes_it_for_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SelfConsumingLoop(GaussianGenerator(), -1), ValueError, "ratio must be at least 0"),
        (lambda: IdealMixture(-1, normal), ValueError, "gamma must be at least 0"),
        (lambda: Projection(lambda x: x, 2.0), ValueError, r"strength must be in \[0, 1\]"),
        (lambda: last(lambda samples, rng: samples[:-1]), ValueError, "corrector must return finite samples"),
        (lambda: last(lambda samples, rng: samples * np.nan), ValueError, "not finite"),
        (lambda: SelfConsumingLoop(GaussianGenerator(), 0.1).run(REAL * np.nan, {}), ValueError, "finite rows"),
        (lambda: ClassConditionalGaussian().fit(REAL[:3], np.array([0, 0, 1])), ValueError, "two rows of each class"),
        (lambda: contraction_factor(0.1, alpha=0), ValueError, "alpha must be above 0"),
        (lambda: gaussian_mixture_theory(0, 1, 1), ValueError, "at least 1"),
        (lambda: two_sample_distance(REAL[:5], REAL), ValueError, "at least ten rows"),
        (
            lambda: AugmentedEstimator(KNeighborsClassifier(), ClassConditionalGaussian(), 1, weight=0.5).fit(
                *two_classes()
            ),
            TypeError,
            "KNeighborsClassifier takes no sample weights",
        ),
        (
            lambda: AugmentedEstimator(KNeighborsClassifier(), ClassConditionalGaussian(), -1).fit(*two_classes()),
            ValueError,
            "ratio must be at least 0",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_ratio_beyond_the_promise_is_warned_of():
    with pytest.warns(UserWarning, match=r"ratio 2 is not below 0\.5"):
        SelfConsumingLoop(GaussianGenerator(), 2)
