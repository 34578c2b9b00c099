"""Ranked lists of score matrices: ties, blocks, exclusions, accuracy."""

import itertools

import numpy as np
import pytest

from poise.recsys import average_overlap, mid_ranks, next_item_accuracy, rank_list_sensitivity, rbo, topk_jaccard
from poise.recsys.overlap_of_scores import Ranking, expected_overlap


def _lists(scores):
    return np.argsort(-scores, axis=1)


def test_score_matrices_agree_with_their_lists():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 40))
    found = rank_list_sensitivity(a, b, k=10, p=0.8)
    for i, (x, y) in enumerate(zip(_lists(a), _lists(b), strict=True)):
        assert found.jaccard[i] == pytest.approx(topk_jaccard(x, y))
        assert found.rbo[i] == pytest.approx(rbo(x, y, 0.8, extrapolate=True))
        assert found.average_overlap[i] == pytest.approx(average_overlap(x, y))
    lists = rank_list_sensitivity(list(_lists(a)), list(_lists(b)), k=10, p=0.8)
    assert np.allclose(lists.rbo, found.rbo)
    assert "Jaccard@10" in str(found)
    assert "depth 40" in str(found)


def test_overlap_with_ties_is_the_mean_over_all_orders():
    a, b = np.array([[3.0, 1, 1, 1, 0]]), np.array([[1.0, 2, 2, 0, 0]])

    def orders(scores):
        return [
            o
            for o in itertools.permutations(range(5))
            if all(scores[0, i] >= scores[0, j] for i, j in itertools.pairwise(o))
        ]

    pairs = list(itertools.product(orders(a), orders(b)))
    mean = [np.mean([len(set(x[:d]) & set(y[:d])) for x, y in pairs]) for d in range(1, 6)]
    assert expected_overlap(Ranking.of(a), Ranking.of(b))[0] == pytest.approx(mean)


def test_identical_scores_give_exactly_one_also_with_ties():
    scores = np.round(np.random.default_rng(0).normal(size=(5, 30)), 1)
    found = rank_list_sensitivity(scores, scores.copy())
    assert (found.jaccard == 1).all()
    assert (found.rbo == 1).all()
    assert (found.average_overlap == 1).all()


def test_the_order_of_items_in_memory_does_not_matter():
    rng = np.random.default_rng(1)
    a, b = np.round(rng.normal(size=(2, 4, 25)), 1)
    order = rng.permutation(25)
    before, after = rank_list_sensitivity(a, b), rank_list_sensitivity(a[:, order], b[:, order])
    assert np.allclose(before.rbo, after.rbo)
    assert np.allclose(before.jaccard, after.jaccard)


def test_excluded_items_do_not_count():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 3, 12))
    seen = np.zeros((3, 12), bool)
    seen[0, :4] = seen[1, 3] = True
    found = rank_list_sensitivity(a, b, k=5, exclude=seen)
    for i in range(3):
        alone = rank_list_sensitivity(a[i : i + 1, ~seen[i]], b[i : i + 1, ~seen[i]], k=5)
        assert found.rbo[i] == pytest.approx(alone.rbo[0])


def test_ranks_of_tied_items():
    assert mid_ranks(np.zeros((1, 9)))[0] == pytest.approx(np.full(9, 5))
    assert mid_ranks(np.array([[0.1, 0.9, 0.9, -np.inf]]))[0] == pytest.approx([3, 1.5, 1.5, 4])


def test_accuracy_of_the_next_item():
    scores = np.array([[3.0, 2, 1, 0], [0, 0, 0, 0], [0, 1, 2, 3]])
    found = next_item_accuracy(scores, np.array([1, 2, 0]), k=2)
    assert found.rank == pytest.approx([2, 2.5, 4])
    assert found.recall == pytest.approx([1, 0, 0])
    assert found.ndcg == pytest.approx([1 / np.log2(3), 0, 0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros((2, 3)), np.zeros((2, 4))), r"\(2, 3\) and \(2, 4\)"),
        ((np.array([[np.nan, 1.0]]), np.zeros((1, 2))), "a must not hold NaN"),
        ((np.zeros((1, 5)), np.zeros((1, 5))), "k must be at most the number of items, 5"),
        (([[1]], [[1], [2]]), "the same number of lists"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        rank_list_sensitivity(*arguments)
