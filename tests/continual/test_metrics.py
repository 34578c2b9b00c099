import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poise.continual import (
    average_accuracy,
    average_anytime_accuracy,
    continual_gaps,
    forgetting,
    gap_depth,
    learning_curve_area,
    min_accuracy,
    normalized_gap,
    recovery_time,
    sample_mean,
    task_mean,
    task_minima,
    windowed_forgetting,
    windowed_plasticity,
    worst_case_accuracy,
)

NAN = math.nan
CARD = np.array([[0.9, NAN], [0.5, 0.2], [0.7, 0.6], [0.8, 0.9]])
TRAINED = np.array([0, 1, 1, 1])


def column(*values):
    return np.array(values)[:, None]


def test_the_worked_example_of_two_tasks():
    assert min_accuracy(CARD, TRAINED) == 0.5
    assert worst_case_accuracy(CARD, TRAINED) == pytest.approx(0.7)
    assert forgetting(CARD, TRAINED) == pytest.approx(0.1)
    first = CARD[:, :1]
    assert windowed_forgetting(first, 2) == pytest.approx(0.4)
    assert windowed_forgetting(first, 4) == pytest.approx(0.4)
    assert windowed_plasticity(first, 2) == pytest.approx(0.2)
    assert windowed_plasticity(first, 3) == pytest.approx(0.3)
    assert average_accuracy(CARD, TRAINED) == pytest.approx(0.85)
    assert gap_depth(CARD, TRAINED, 0) == pytest.approx(0.4)
    assert average_anytime_accuracy(CARD, TRAINED) == pytest.approx(np.mean([0.9, 0.35, 0.65, 0.85]))


def test_a_rise_that_starts_at_a_low_point_is_found():
    assert windowed_plasticity(column(0.5, 0.2, 0.9), 3) == pytest.approx(0.7)
    assert windowed_forgetting(column(0.5, 0.2, 0.9), 3) == pytest.approx(0.3)


def test_three_definitions_of_forgetting_are_told_apart():
    lost, gained = np.array([[0.9, NAN], [0.5, 0.7]]), np.array([[0.8, NAN], [0.9, 0.7]])
    assert forgetting(lost, [0, 1]) == pytest.approx(0.4)
    assert forgetting(gained, [0, 1], "end") == pytest.approx(-0.1)
    assert forgetting(gained, [0, 1], "max") == 0


def test_950_small_tasks_forget_a_tenth():
    n = 951
    acc = np.full((n, n), NAN)
    for i in range(n):
        acc[i, i] = 0.9
        acc[i, :i] = 0.8
    assert forgetting(acc, np.arange(n)) == pytest.approx(0.1)
    # The same stream evaluated on one task of which all but the last are small parts.
    fused = np.array([[0.9, NAN]] * 950 + [[0.8, 0.9]])
    assert forgetting(fused, [0] * 950 + [1]) == pytest.approx(0.1)


def test_means_over_tasks_and_over_samples_differ():
    acc = np.array([[1.0, NAN], [1.0, 0.0]])
    assert average_accuracy(acc, [0, 1]) == task_mean([1, 0]) == 0.5
    assert average_accuracy(acc, [0, 1], sizes=[10, 90]) == sample_mean([1, 0], [10, 90]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="sizes must be one positive"):
        sample_mean([1, 0], [10])


def test_one_task_has_no_minimum_and_its_worst_case_is_its_accuracy():
    acc = column(0.3, 0.8)
    assert math.isnan(min_accuracy(acc, [0, 0]))
    assert math.isnan(forgetting(acc, [0, 0]))
    assert worst_case_accuracy(acc, [0, 0]) == 0.8


def test_a_task_that_is_trained_again_is_old_only_while_others_train():
    acc = np.array([[0.9, NAN], [0.4, 0.9], [0.1, 0.5], [0.8, 0.3]])
    trained = np.array([0, 1, 0, 1])  # the 0.1 is reached while task 0 is trained
    assert task_minima(acc, trained) == {0: 0.4, 1: 0.5}


def test_recovery_is_counted_from_the_end_of_training():
    acc = np.array([[0.9, NAN], [0.5, 0.1], [0.7, 0.1], [0.895, 0.1]])
    assert recovery_time(acc, [0, 1, 1, 1], 0) == 3
    assert recovery_time(acc, [0, 1, 1, 1], 0, tolerance=0.001) == math.inf
    assert recovery_time(acc, [0, 1, 1, 1], 0, tolerance=0.5) == 0


def test_area_counts_the_zero_shot_score_if_told_so():
    acc = np.array([[0.1, 0.0], [0.5, 0.2], [0.5, 0.4], [0.5, 0.8]])
    trained = np.array([-1, 0, 1, 1])
    assert learning_curve_area(acc, trained, beta=1) == pytest.approx(np.mean([0.3, 0.3]))
    assert learning_curve_area(acc, trained, beta=2, zero_shot=False) == pytest.approx(np.mean([0.5, 0.6]))


def test_a_median_of_three_hides_one_noisy_row():
    acc = np.array([[0.9, NAN]] + [[v, 0.5] for v in (0.8, 0.2, 0.8, 0.8)])
    assert min_accuracy(acc, [0, 1, 1, 1, 1]) == pytest.approx(0.2)
    assert min_accuracy(acc, [0, 1, 1, 1, 1], smooth=3) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="odd"):
        min_accuracy(acc, [0, 1, 1, 1, 1], smooth=2)


curves = hnp.arrays(float, st.tuples(st.integers(2, 12), st.integers(1, 3)), elements=st.floats(0, 1))


@given(curves, st.integers(2, 13))
@settings(max_examples=60, deadline=None)
def test_windows_grow_are_bounded_and_mirror_each_other(acc, window):
    fall, rise = windowed_forgetting(acc, window), windowed_plasticity(acc, window)
    assert 0 <= fall <= 1
    assert 0 <= rise <= 1
    assert windowed_forgetting(acc, window + 1) >= fall
    assert windowed_forgetting(acc[:-1], window) <= fall + 1e-12 or len(acc) == 2
    assert windowed_plasticity(1 - acc, window) == pytest.approx(fall)
    brute = [
        max([max(0.0, a[m] - a[n]) for n in range(len(a)) for m in range(max(0, n - window + 1), n)]) for a in acc.T
    ]
    assert fall == pytest.approx(np.mean(brute))


@given(curves)
@settings(max_examples=60, deadline=None)
def test_the_worst_case_is_below_the_average_and_fewer_rows_raise_the_minimum(acc):
    tasks = acc.shape[1]
    trained = np.sort(np.arange(len(acc)) % tasks)
    seen = np.unique(trained)
    acc = acc[:, : len(seen)]
    assert worst_case_accuracy(acc, trained) <= average_accuracy(acc, trained) + 1e-12
    keep = np.append(np.flatnonzero(np.diff(trained)), len(trained) - 1)
    if len(seen) > 1:
        assert min_accuracy(acc[keep], trained[keep]) >= min_accuracy(acc, trained)


def test_a_rising_curve_has_no_fall():
    acc = column(0.1, 0.4, 0.7)
    assert windowed_forgetting(acc, 10) == 0
    assert windowed_plasticity(acc, 10) == pytest.approx(0.6)


def test_normalised_gaps():
    assert normalized_gap([[0.8, 0.8], [0.6]], [0.8, 0.6]) == 0
    assert normalized_gap([[1.5]], [1.0]) == pytest.approx(-0.5)
    assert normalized_gap([[0.4, 0.4], [0.3, 0.3]], [0.8, 0.6]) == pytest.approx(0.5)
    gaps = continual_gaps([[0.4]], [[0.9]], [[0.6]], [(0.8, 0.9, 0.6)])
    assert gaps.stability == pytest.approx(0.5)
    assert (gaps.plasticity, gaps.continual_knowledge) == (0, 0)


@pytest.mark.parametrize("reference", [0.0, -1.0, NAN, math.inf])
def test_a_reference_that_is_no_accuracy_is_named(reference):
    with pytest.raises(ValueError, match="increment 1 must be positive"):
        normalized_gap([[0.5], [0.5]], [0.5, reference])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="window must be at least 2"):
        windowed_forgetting(CARD, 1)
    with pytest.raises(ValueError, match="reference must be 'end' or 'max'"):
        forgetting(CARD, TRAINED, "first")
    with pytest.raises(ValueError, match="shape"):
        min_accuracy(CARD, TRAINED[:2])
    with pytest.raises(ValueError, match="trained must hold tasks"):
        min_accuracy(CARD, [0, 1, 1, 2])
    with pytest.raises(ValueError, match="at least one row"):
        average_accuracy(CARD, [-1] * 4)
    with pytest.raises(ValueError, match="beta"):
        learning_curve_area(CARD, TRAINED, beta=0)
    with pytest.raises(ValueError, match="one accuracy for each increment"):
        normalized_gap([[0.5]], [])
