"""Recommenders of the next item: windows, networks, training."""

import numpy as np
import pytest
import torch

from poise.recsys import (
    GRURecommender,
    SASRec,
    SequenceWindows,
    fit_recommender,
    items_before,
    last_items,
    next_item_accuracy,
    score_users,
)


def test_windows_hold_every_pair_once(cycle_log):
    log = cycle_log(users=3, length=12)
    windows = SequenceWindows.of(log, 5)
    assert windows.items.shape == (9, 5)
    assert int(windows.mask.sum()) == 3 * 11
    assert sorted(windows.rows[windows.mask].tolist()) == sorted(log.row[log.time < 11].tolist())
    assert ((windows.items[windows.mask] + 1) % 7 == windows.targets[windows.mask]).all()
    assert (windows.items[:, -1] >= 0).all()  # padding is at the start


def test_last_items_are_padded_at_the_start(cycle_log):
    log = cycle_log(users=2, length=3)
    assert last_items(log, 4).tolist() == [[-1, 0, 1, 2], [-1, 1, 2, 3]]
    assert last_items(log, 2).tolist() == [[1, 2], [2, 3]]


@pytest.mark.parametrize("network", [GRURecommender, SASRec])
def test_networks_learn_a_certain_order(network, cycle_log):
    log = cycle_log()
    torch.manual_seed(0)
    model = network(7, 16)
    losses = fit_recommender(model, log, epochs=25, lr=1e-2, batch_size=4)
    assert losses[-1] < 0.3 * losses[0]
    scores = score_users(model, log).numpy()
    assert next_item_accuracy(scores, (np.arange(12) + 15) % 7, k=1).recall.mean() == 1


@pytest.mark.parametrize("network", [GRURecommender, SASRec])
def test_scores_do_not_depend_on_what_comes_later(network):
    torch.manual_seed(0)
    model = network(9, 8).eval()
    items = torch.randint(9, (2, 6))
    changed = items.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 9
    assert torch.allclose(model(items)[:, :4], model(changed)[:, :4], atol=1e-6)
    assert not torch.allclose(model(items)[:, 4:], model(changed)[:, 4:], atol=1e-3)


def test_attention_ignores_padding():
    torch.manual_seed(0)
    model = SASRec(9, 8, max_length=8).eval()
    items = torch.randint(9, (2, 5))
    padded = torch.nn.functional.pad(items, (3, 0), value=-1)
    assert torch.allclose(model(items), model(padded)[:, 3:], atol=1e-6)


def test_the_same_seed_trains_the_same_network_and_leaves_the_generator_alone(cycle_log):
    log, found = cycle_log(), []
    for _ in range(2):
        torch.manual_seed(3)
        model = SASRec(7, 8)
        before = torch.get_rng_state()
        fit_recommender(model, log, epochs=2, seed=5)
        assert torch.equal(before, torch.get_rng_state())
        found.append(score_users(model, log))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SASRec(5, 6, heads=4), "heads must divide dim"),
        (lambda: SASRec(5, 8, max_length=3)(torch.zeros(1, 4, dtype=torch.long)), "at most 3 positions"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_network_that_scores_the_last_step_only_is_explained(cycle_log):
    class LastStep(GRURecommender):
        def forward(self, items):
            return super().forward(items)[:, -1]

    with pytest.raises(ValueError, match=r"every position, shape \(batch, time, items\), got \(12, 7\)"):
        fit_recommender(LastStep(7, 4), cycle_log(), epochs=1)


def test_windows_need_a_length_and_a_user_with_two_events(cycle_log):
    with pytest.raises(ValueError, match="a user with two events"):
        SequenceWindows.of(cycle_log(length=1))
    with pytest.raises(ValueError, match="length must be at least 1"):
        SequenceWindows.of(cycle_log(), 0)


def test_items_before_an_event_are_those_of_its_user(cycle_log):
    log = cycle_log(users=3, length=4)
    events = np.flatnonzero((log.time == 2) | (log.time == 0))
    expected = {(user, time): [-1, -1, -1] for user in range(3) for time in (0, 2)}
    expected |= {(user, 2): [-1, user, user + 1] for user in range(3)}
    found = items_before(log, events, 3).tolist()
    assert found == [expected[int(log.user[e]), int(log.time[e])] for e in events]
