"""Tables of interactions: their order, their graph, and small changes of them."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from poise.recsys import EventLog, InteractionGraph, perturb


def _events(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"user": rng.integers(0, 8, n), "item": rng.integers(0, 12, n), "time": rng.permutation(n)})


def _descendants(graph):
    after = np.stack([graph.next_of_user, graph.next_of_item], 1)
    found = [set() for _ in after]
    for event in reversed(range(len(after))):
        for follower in after[event][after[event] >= 0]:
            found[event] |= {int(follower)} | found[follower]
    return np.array([len(f) for f in found])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("window_on", ["both", "user"])
def test_cascade_scores_count_descendants(window, window_on):
    graph = InteractionGraph.from_frame(_events(), window=window, window_on=window_on)
    assert (graph.cascade_scores() == _descendants(graph)).all()
    assert graph.roots()[graph.cascade_scores().argmax()]


def test_a_chain_and_two_users_that_share_nothing():
    chain = pd.DataFrame({"user": [1] * 5, "item": list("abcde"), "time": range(5)})
    assert InteractionGraph.from_frame(chain).cascade_scores().tolist() == [4, 3, 2, 1, 0]
    apart = pd.DataFrame({"user": [1, 2, 1, 2], "item": list("abcd"), "time": range(4)})
    assert InteractionGraph.from_frame(apart).cascade_scores().tolist() == [1, 1, 0, 0]


def test_a_window_leaves_only_the_last_events():
    chain = pd.DataFrame({"user": [1] * 5, "item": list("abcde"), "time": range(5)})
    assert InteractionGraph.from_frame(chain, window=4).cascade_scores().tolist() == [0, 0, 2, 1, 0]


def test_a_log_is_ordered_by_time_then_user_then_item():
    table = pd.DataFrame({"user": [2, 1, 1], "item": ["x", "z", "y"], "time": [0, 0, 0]})
    with pytest.warns(UserWarning, match="50% of the events have the same time"):
        log = EventLog.from_frame(table)
    assert log.row.tolist() == [2, 1, 0]
    assert log.held_out(0.5).tolist() == [False, True, False]


@pytest.mark.parametrize("convert", [lambda t: t, pl.from_pandas, pa.Table.from_pandas])
@pytest.mark.parametrize("kind", ["delete", "replace", "insert"])
def test_perturbations_of_every_kind_of_table(convert, kind):
    table = _events()
    changed = perturb(convert(table), [3, 10], kind)
    assert type(changed) is type(convert(table))
    assert len(changed) == {"delete": 58, "replace": 60, "insert": 62}[kind]
    assert len(table) == 60


def test_inserted_events_precede_their_row_by_one_unit():
    table = _events()
    changed = perturb(table, [3, 10], "insert", item=7).reset_index(drop=True)
    for new, old in ((3, 3), (11, 10)):
        assert changed.user[new] == table.user[old]
        assert changed.time[new] == table.time[old] - 1
        assert changed.item[new] == 7
    rest = changed.drop(index=[3, 11]).reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, table)


def test_replaced_items_are_the_least_popular_ones_or_random():
    table = _events()
    rarest = table.item.value_counts().min()
    changed = perturb(table, [0, 1], "replace")
    assert (table.item == changed.item[0]).sum() == rarest
    assert perturb(table, [0], "replace", item="random", seed=3).equals(
        perturb(table, [0], "replace", item="random", seed=3)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perturb(_events(), [60]), r"rows must be in 0 \.\. 59"),
        (lambda: perturb(_events(), [1, 1]), "rows must be distinct"),
        (lambda: perturb(_events(), []), "rows must be at least one"),
        (lambda: perturb(_events(), range(60)), "rows must leave an event"),
        (lambda: perturb(_events(), [1], "swap"), "kind must be one of delete, replace, insert"),
        (lambda: perturb(_events(), [1], "replace", item="gone"), "item must be"),
        (lambda: perturb(_events().drop(columns="time"), [1]), "'time'"),
        (lambda: EventLog.from_frame(_events().drop(columns="time")), "'time'"),
        (lambda: EventLog.from_frame(_events().assign(time=np.nan)), "missing values"),
        (lambda: EventLog.from_frame(_events()[:0]), "at least one row"),
        (lambda: InteractionGraph.from_frame(_events(), window=1), "window must be at least 2"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
