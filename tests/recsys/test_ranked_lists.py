"""Similarities of two ranked lists, against closed forms and loops over depth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.recsys import average_overlap, rbo, topk_jaccard

NINE_SWAPPED = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
permutations = st.integers(2, 30).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n))))


@pytest.mark.parametrize(
    ("a", "b", "p", "extrapolate", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 0, 9], NINE_SWAPPED, 0.9, False, 0.6465385909),
        ([1, 2, 3, 4, 5, 6, 7, 8, 0, 9], NINE_SWAPPED, 0.9, True, 0.9952170310),
        ([1, 2, 3, 4], [2], 0.9, True, 0.25425),
        ([1, 2, 3], [1], 0.4, True, 1.0),
        ("NHMACFL", "CGNA", 0.9, True, 0.4903836429),
    ],
)
def test_rbo_of_published_examples(a, b, p, extrapolate, expected):
    assert rbo(a, b, p, extrapolate=extrapolate) == pytest.approx(expected, abs=1e-10)
    assert rbo(b, a, p, extrapolate=extrapolate) == pytest.approx(expected, abs=1e-10)


def test_average_overlap_of_a_reversed_list():
    assert average_overlap("abcde", "edcba") == pytest.approx(5 / 12)


def _by_depth(a, b, weight):
    return sum(weight(d) * len(set(a[:d]) & set(b[:d])) / d for d in range(1, max(len(a), len(b)) + 1))


@given(permutations, st.floats(0.05, 0.99))
def test_sums_over_items_equal_sums_over_depths(pair, p):
    a, b = pair
    arrays = np.array(a), np.array(b)
    expected = _by_depth(a, b, lambda d: (1 - p) * p ** (d - 1))
    assert rbo(a, b, p) == pytest.approx(expected, abs=1e-12)
    assert rbo(*arrays, p) == pytest.approx(expected, abs=1e-12)
    assert average_overlap(a, b) == pytest.approx(_by_depth(a, b, lambda d: 1 / len(a)), abs=1e-12)


@given(permutations, st.integers(1, 30))
def test_measures_are_symmetric_and_do_not_depend_on_names(pair, k):
    a, b = pair
    k = min(k, len(a))
    renamed = [f"item {i}" for i in a], [f"item {i}" for i in b]
    for measure in (rbo, average_overlap):
        assert measure(a, b) == pytest.approx(measure(b, a))
        assert measure(a, b) == pytest.approx(measure(*renamed))
    assert topk_jaccard(a, b, k) == topk_jaccard(b, a, k) == topk_jaccard(*renamed, k)


@given(st.integers(1, 40), st.floats(0.05, 0.99))
def test_identical_lists(n, p):
    items = list(range(n))
    assert rbo(items, items, p, extrapolate=True) == 1
    assert rbo(items, items, p) == pytest.approx(1 - p**n)
    assert average_overlap(items, items) == pytest.approx(1)
    assert topk_jaccard(items, items, n) == 1


def test_jaccard_of_halves_and_of_nothing():
    assert topk_jaccard(range(10), range(5, 15)) == pytest.approx(1 / 3)
    assert topk_jaccard(range(10), range(10, 20)) == 0
    assert rbo(range(10), range(10, 20)) == 0


def test_a_swap_below_the_depth_changes_nothing():
    a, b = list(range(12)), [*range(10), 11, 10]
    assert topk_jaccard(a, b, 10) == 1
    assert rbo(a, b, k=10) == rbo(a, a, k=10)


def test_arrays_that_are_no_permutations_are_compared_as_lists():
    for a, b in (([0, 5], [5, 0]), ([-1, 0], [1, 0]), ([3, 1, 2], [2, 1, 4])):
        assert rbo(np.array(a), np.array(b)) == pytest.approx(rbo(a, b))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rbo([1, 1], [1, 2]), "a must hold each item once, got 1 twice"),
        (lambda: rbo(np.array([0, 1]), np.array([0, 0])), "b must hold each item once"),
        (lambda: rbo([], [1]), "a must be a list of at least one item"),
        (lambda: rbo([1], [1], p=1), "p = 1 is average_overlap"),
        (lambda: rbo([1], [1], p=0), "p must be in"),
        (lambda: topk_jaccard([1, 2], [1, 2]), r"k must be in 1 \.\. 2"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
