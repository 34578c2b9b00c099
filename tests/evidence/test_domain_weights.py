"""Weights between two samples, tilted samples, and what they leave of a sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from poise.evidence import clip_probabilities, domain_weights, effective_sample_size, overlap, tilt_sample
from poise.evidence.domain_weights import area_under_roc, seeded


class Constant(ClassifierMixin, BaseEstimator):
    """A classifier with one probability everywhere; by default the fraction of positive rows."""

    def __init__(self, q=None, random_state=None):
        self.q = q
        self.random_state = random_state

    def fit(self, x, y):
        self.classes_ = np.array([0, 1])
        self.q_ = np.mean(y) if self.q is None else self.q
        return self

    def predict_proba(self, x):
        return np.tile([1 - self.q_, self.q_], (len(x), 1))


SOURCE, TARGET = np.zeros((30, 1)), np.zeros((10, 1))


def test_weights_are_one_where_the_samples_cannot_be_distinguished():
    found = domain_weights(SOURCE, TARGET, classifier=Constant(), folds=0)
    np.testing.assert_allclose(found.weights, 1)
    assert found.auc == 0.5
    assert found.overlap.effective_sample_size == pytest.approx(30)
    assert (found.overlap.clipped, found.overlap.unsupported) == (0, 0)


def test_the_largest_weight_is_bounded_and_counted():
    found = domain_weights(SOURCE, TARGET, classifier=Constant(1.0), folds=0)
    np.testing.assert_allclose(found.weights, 20 * 30 / 10)
    assert (found.overlap.clipped, found.overlap.unsupported) == (30, 10)
    assert "10 of 10 rows outside the support" in str(found.overlap)


def test_the_smallest_weight_is_bounded_and_counted():
    found = domain_weights(SOURCE, TARGET, classifier=Constant(0.0), folds=0)
    np.testing.assert_allclose(found.weights, 0.001)
    assert found.overlap.clipped == 30


def test_weights_of_two_normal_samples_are_their_density_ratio():
    random = np.random.default_rng(0)
    source, target = random.normal(0, 1, (20_000, 1)), random.normal(0.5, 1, (20_000, 1))
    found = domain_weights(source, target, classifier=LogisticRegression())
    exact = np.exp(0.5 * source[:, 0] - 0.125)
    np.testing.assert_allclose(found.weights, exact, rtol=0.15)
    assert found.weights @ source[:, 0] / found.weights.sum() == pytest.approx(0.5, abs=0.03)


def test_cross_fitting_removes_the_optimism_of_alike_samples():
    x = np.random.default_rng(1).normal(size=(400, 5))
    assert domain_weights(x[:200], x[200:], folds=0).auc > 0.9
    assert abs(domain_weights(x[:200], x[200:]).auc - 0.5) < 0.1


def test_same_seed_same_weights():
    x = np.random.default_rng(1).normal(size=(100, 3))
    first, second = (domain_weights(x[:50], x[50:], seed=3).weights for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_every_random_state_is_set_and_given_ones_are_kept():
    pipeline = make_pipeline(Constant(), Constant(random_state=9))
    seeded(pipeline, 5)
    assert [step.random_state for _, step in pipeline.steps] == [5, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros((10, 2))}, "source and target must have the same columns, got 1 and 2"),
        ({"target": np.zeros(10)}, "target must be a matrix"),
        ({"folds": 1}, "folds must be 0 or at least 2, got 1"),
        ({"target": np.zeros((3, 1))}, "must have at least 5 rows, got 30 and 3"),
        ({"min_denominator": 0.0}, "min_denominator must lie in"),
        ({"min_weight": -1.0}, "min_weight must not be negative"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        domain_weights(**{"source": SOURCE, "target": TARGET, **change})


@given(st.lists(st.floats(0, 1e200), min_size=1, max_size=20).filter(any))
def test_effective_sample_size_lies_between_one_and_the_rows(weights):
    assert 1 - 1e-9 <= effective_sample_size(weights) <= len(weights) + 1e-9


def test_equal_weights_leave_the_whole_sample():
    facts = overlap(np.full(7, 3.0))
    assert facts.effective_sample_size == pytest.approx(7)
    assert facts.largest_weight == pytest.approx(1 / 7)
    assert facts.unsupported_fraction == 0


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, np.nan], [-1.0, 2.0]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights must"):
        effective_sample_size(weights)


def test_clipped_probabilities_are_counted():
    clipped = clip_probabilities([0.001, 0.5], 0.01)
    assert str(clipped) == "1 row clipped"
    assert clipped.values.tolist() == [0.01, 0.5]
    assert clip_probabilities([0.0, 1.0, 0.5], 0.01).rows == 2
    assert clip_probabilities([0.0, 1.0], 0.0).rows == 0
    with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\], got 1.5"):
        clip_probabilities([1.5], 0.1)
    with pytest.raises(ValueError, match="clip must lie"):
        clip_probabilities([0.5], 0.5)


@settings(deadline=None)
@given(st.floats(0.05, 1.0), st.integers(0, 99))
def test_a_tilt_has_the_effective_sample_size_that_was_asked_for(ess, seed):
    score = np.random.default_rng(seed).normal(size=500)
    tilt = tilt_sample(score, ess, 10, seed)
    assert effective_sample_size(tilt.weights) / 500 == pytest.approx(ess, abs=1e-6)
    assert tilt.weights.sum() == pytest.approx(1)
    assert tilt.weights @ score >= score.mean() - 1e-12


def test_a_tilt_is_invariant_to_shift_and_scale_of_the_score():
    score = np.random.default_rng(0).normal(size=200)
    one, two = tilt_sample(score, 0.3, 50), tilt_sample(1e6 * score - 7, 0.3, 50)
    np.testing.assert_allclose(one.weights, two.weights, rtol=1e-6)
    np.testing.assert_array_equal(one.indices, two.indices)


@pytest.mark.parametrize(
    ("score", "ess", "size", "message"),
    [
        ([1.0, 1.0], 0.5, 3, "cannot be reached"),
        ([0.0, 1.0, 1.0], 0.5, 3, "cannot be reached"),
        ([0.0, np.nan], 0.5, 3, "finite"),
        ([0.0, 1.0], 0.0, 3, "ess must lie in"),
        ([0.0, 1.0], 0.9, 0, "size must be at least 1"),
    ],
)
def test_unreachable_tilts_are_refused(score, ess, size, message):
    with pytest.raises(ValueError, match=message):
        tilt_sample(score, ess, size)


def test_area_under_roc_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 200), random.integers(0, 20, 200)
    assert area_under_roc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
