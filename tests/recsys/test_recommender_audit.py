"""The audit of a recommender on trainings whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from poise.recsys import audit_recommender


def log(users=30, items=15, n=600, seed=0):
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1)
    table = {
        "user": rng.integers(0, users, n),
        "item": rng.choice(items, n, p=popularity / popularity.sum()),
        "time": rng.permutation(n),
    }
    return pd.DataFrame(table)


def popular(events, seed):
    """Scores of all items by their number of interactions: the same for all users, and hardly touched by one."""
    count = np.bincount(np.unique(events.item, return_inverse=True)[1]).astype(float)
    return np.tile(count, (events.user.nunique(), 1))


def by_seed(events, seed):
    return np.random.default_rng(seed).normal(size=(events.user.nunique(), events.item.nunique()))


def by_first_row(events, seed):
    return np.random.default_rng(int(events.iloc[0].time)).normal(size=(events.user.nunique(), events.item.nunique()))


def test_counting_is_stable():
    report = audit_recommender(popular, log())
    assert report.verdict == "lists are stable"
    assert not report.findings
    table = report.blocks[0]
    assert [row[0] for row in table.rows][:4] == ["none (base)", "same seed", "other seed", "other row order"]
    assert [row[3] for row in table.rows][:4] == [1, 1, 1, 1]


def test_a_recommender_that_is_its_seed():
    report = audit_recommender(by_seed, log(), k=5)
    assert report.verdict == "lists change with the seed"
    assert [finding.cause for finding in report.findings] == ["seed_sensitivity"]


def test_a_recommender_that_hangs_on_its_first_row():
    events = log()
    report = audit_recommender(by_first_row, events, k=5)
    assert "lists change with the order of the rows" in report.verdict
    other = audit_recommender(by_first_row, events, k=5, kinds=("insert",), columns=("user", "item", "time"))
    assert {"row_order_sensitivity"} <= {finding.cause for finding in other.findings}


def test_a_training_that_is_not_deterministic_is_reported_and_sets_the_floor():
    rng = np.random.default_rng(0)
    report = audit_recommender(lambda events, seed: by_seed(events, int(rng.integers(1000))), log(), k=5)
    causes = [finding.cause for finding in report.findings]
    assert causes[0] == "nondeterministic_training"
    assert "interaction_sensitivity" not in causes


def test_lists_of_labels_are_compared_too():
    def listed(events, seed):
        scores, labels = popular(events, seed), np.unique(events.item)
        top = np.argsort(-scores, axis=1, kind="stable")[:, :12]
        return labels[top], np.take_along_axis(scores, top, 1)

    assert audit_recommender(listed, log()).verdict == "lists are stable"


def test_no_user_or_item_loses_its_last_interaction():
    events = pd.concat([log(), pd.DataFrame({"user": [99], "item": [88], "time": [-1]})], ignore_index=True)
    report = audit_recommender(popular, events, n_random=8)
    assert all(row[0] != 600 for row in report.blocks[3].rows)


def test_an_interrupted_audit_reports_what_is_there(tmp_path):
    calls = []

    def fit(events, seed):
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return popular(events, seed)

    report = audit_recommender(fit, log(), folder=tmp_path)
    assert "Not finished: other row order, delete random 1" in report.blocks[-1].markdown
    whole = audit_recommender(fit, log(), folder=tmp_path)
    assert len(calls) == 4 + 7
    assert "Not finished" not in whole.blocks[-1].markdown


@pytest.mark.parametrize(
    ("fit", "events", "words"),
    [
        (lambda e, s: np.zeros((3, 4)), log(), r"shape \(30 users, 15 items\), or \(ids, scores\), got \(3, 4\)"),
        (lambda e, s: popular(e, s) * np.nan, log(), "without NaN"),
        (popular, log().drop(columns="time"), "'time'"),
        (popular, pd.DataFrame({"user": [1, 2], "item": [3, 4], "time": [0, 1]}), "another one, got none"),
    ],
)
def test_bad_input(fit, events, words):
    with pytest.raises(ValueError, match=words):
        audit_recommender(fit, events)


def test_a_fit_that_is_no_function():
    with pytest.raises(TypeError, match="fit must be a function"):
        audit_recommender(3, log())
