"""Calibration of scores, and how rows are divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from poise.shift import ByNumber, BySize, ByTime
from poise.shift.estimation.calibration import Boosted, Isotonic, calibration_error, cbpe_calibration, needs_calibration
from poise.shift.estimation.chunks import as_chunking, divide


def sample(n, seed, power=1.0):
    random = np.random.default_rng(seed)
    score = random.random(n)
    return score, (random.random(n) < score**power).astype(int)


def test_isotonic_calibration_keeps_the_mean_of_labels():
    score, label = sample(500, 0)
    fitted = Isotonic.fit(score, label)
    assert fitted.probability(score).mean() == pytest.approx(label.mean())
    assert (np.diff(fitted.probability(np.linspace(0, 1, 50))) >= 0).all()


def test_isotonic_calibration_does_not_depend_on_a_monotone_transform_of_scores():
    score, label = sample(500, 0)
    one, two = Isotonic.fit(score, label), Isotonic.fit(score**3, label)
    np.testing.assert_allclose(one.probability(score), two.probability(score**3), atol=1e-12)


def test_weights_count_as_copies():
    score, label = sample(300, 0)
    weight = np.random.default_rng(1).integers(1, 4, 300)
    one, two = Isotonic.fit(score, label, weight), Isotonic.fit(np.repeat(score, weight), np.repeat(label, weight))
    np.testing.assert_allclose(one.probability(score), two.probability(score), atol=1e-12)


def test_the_variance_of_a_calibration_is_that_over_references():
    new, slope = np.linspace(0, 1, 100), np.full(100, 0.01)
    fits = [Isotonic.fit(*sample(2000, seed)) for seed in range(200)]
    real = np.var([slope @ fit.probability(new) for fit in fits])
    assert np.mean([fit.variance(new, slope) for fit in fits]) == pytest.approx(real, rel=0.35)


def test_boosted_calibration_stays_within_probabilities():
    score, label = sample(2000, 0, power=4)
    probability = Boosted.fit(score, label).probability(np.linspace(0, 1, 200))
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert np.abs(probability - np.linspace(0, 1, 200) ** 4).mean() < 0.1


def test_only_scores_that_gain_from_it_are_calibrated():
    assert needs_calibration(*sample(20_000, 0, power=3))
    assert not needs_calibration(np.r_[np.zeros(500), np.ones(500)], np.repeat([0, 1], 500))
    assert not needs_calibration(np.linspace(0, 1, 100), np.ones(100, dtype=int))
    assert isinstance(cbpe_calibration(*sample(20_000, 0, power=3)), Isotonic)


def test_calibration_error_of_a_constant_gap_is_the_gap():
    label = np.tile([0, 1], 100)
    assert calibration_error(label, np.full(200, 0.8)) == pytest.approx(0.3)
    assert calibration_error(label, np.full(200, 0.5)) == pytest.approx(0, abs=1e-12)


@given(st.integers(9, 10_000))
def test_any_number_of_rows_makes_nine_chunks_of_nearly_one_size(rows):
    sizes = [index.stop - index.start for index in divide(ByNumber(9), rows)]
    assert len(sizes) == 9
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1


def test_chunks_by_size_leave_the_remainder_last():
    assert divide(BySize(4), 10) == [slice(0, 4), slice(4, 8), slice(8, 10)]


@pytest.mark.parametrize(
    ("period", "groups"),
    [
        ("1M", [[0, 3], [1, 2], [4]]),
        ("1W", [[0, 3], [1], [2], [4]]),
        ("2D", [[0], [3], [1], [2], [4]]),
        ("1Y", [[0, 1, 2, 3], [4]]),
        ("1Q", [[0, 1, 2, 3], [4]]),
    ],
)
def test_chunks_by_time_are_calendar_periods(period, groups):
    days = ["2024-01-01", "2024-02-04", "2024-02-05", "2024-01-07", "2025-06-01"]
    found = divide(ByTime(period), 5, np.array(days, dtype="datetime64[us]"))
    assert sorted(list(map(int, index)) for index in found) == sorted(groups)


def test_bad_chunks_are_named():
    for wrong in ("fortnight", "0D"):
        with pytest.raises(ValueError, match="chunk must be a period"):
            as_chunking(wrong)
    with pytest.raises(ValueError, match="at least 1 row"):
        as_chunking(0)
    with pytest.raises(TypeError, match="chunk must be rows per chunk"):
        as_chunking(2.5)
    with pytest.raises(ValueError, match="needs the column of times: set timestamp"):
        divide(ByTime("1D"), 5)
    with pytest.raises(ValueError, match="3 rows cannot be divided into 4 chunks"):
        divide(ByNumber(4), 3)
    with pytest.raises(ValueError, match="1 rows without one"):
        divide(ByTime("1D"), 2, np.array(["2024-01-01", "NaT"], dtype="datetime64[us]"))


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_calibration_is_that_of_scikit_learn(weighted):
    score, label = sample(2000, 0)
    score = np.round(score, 2)  # ties
    weight = np.random.default_rng(1).random(2000) if weighted else None
    peer = IsotonicRegression(out_of_bounds="clip").fit(score, label, sample_weight=weight)
    new = np.linspace(-0.1, 1.1, 500)
    np.testing.assert_allclose(Isotonic.fit(score, label, weight).probability(new), peer.predict(new), atol=1e-12)
