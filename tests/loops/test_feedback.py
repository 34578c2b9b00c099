"""Feedback of labels: the bound, label rules, the loop, calibration, logs."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier

from poise.loops import (
    FeedbackLoop,
    bound_limit,
    consistent_calibration,
    feedback_bound,
    group_gap,
    human_rows_needed,
    label_share,
    temperature,
    trace_of_log,
    trace_of_self_training,
)


def data(n=3000, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < share).astype(int)
    return rng.normal(size=(n, 3)) + y[:, None] * [1.0, 0.5, 0.0], y


def run(estimator=None, n0=200, seed=0, **settings):
    X, y = data()
    loop = FeedbackLoop(
        estimator or LinearDiscriminantAnalysis(), **{"m": 10, "k": 40, "rounds": 10, "seed": seed, **settings}
    )
    return loop.run(X[:n0], y[:n0], X[n0:2000], y[n0:2000], X[2000:], y[2000:], {"share": label_share(1)})


# --- the bound


def test_the_bound_of_published_settings():
    assert feedback_bound(25, 1000, 50, 450, 1.0)[[0, 1, 2, 25]] == pytest.approx([1, 1.3, 1.5175, 2.9272], abs=1e-4)
    assert feedback_bound(90, 50_000, 2500, 2500, 1.0)[[1, 90]] == pytest.approx([1.0454545, 1.6802], abs=1e-4)
    assert feedback_bound(2, 1000, 0, 500, 1.0)[1:] == pytest.approx([4 / 3, 1.5833333])
    assert feedback_bound(9, 100, 5, 0, 0.3) == pytest.approx(np.full(10, 0.3))


@given(st.integers(1, 500), st.integers(1, 50), st.integers(0, 200))
def test_the_recursion_equals_its_closed_form(n0, m, k):
    n = n0 + np.arange(1, 21) * (m + k)
    closed = 1 + k / m * (1 - np.cumprod(1 - m / n))
    assert feedback_bound(20, n0, m, k, 1.0)[1:] == pytest.approx(closed)
    assert (closed <= bound_limit(m, k)).all()


def test_the_limit_and_the_human_rows_that_keep_it():
    assert bound_limit(50, 450) == 10
    assert bound_limit(0, 5) == np.inf
    rows = human_rows_needed(450, 0.1, 0.05)
    assert bound_limit(rows, 450) * 0.05 <= 0.1 < bound_limit(rows - 1, 450) * 0.05


# --- the loop


def test_an_oracle_does_not_drift():
    """Labels drawn by the rule that made the data: the pool keeps its share up to sampling error."""
    X, y = data()

    def truth(model, rows, rng):
        table = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
        return np.array([table[row.tobytes()] for row in rows])

    trace = run(label_rule=truth, rounds=20)
    assert trace.statistics["share"] == pytest.approx(np.full(21, y[2000:].mean()))
    assert trace.statistics["accuracy"] == pytest.approx(np.ones(21))


def test_a_constant_labeller_fills_the_pool():
    trace = run(DummyClassifier(strategy="most_frequent"))
    assert trace.statistics["share"] == pytest.approx(np.zeros(11))
    assert trace.provenance["human"] == pytest.approx(200 + 10 * np.arange(11))
    assert trace.provenance["model"] == pytest.approx(40 * np.arange(11))


def test_sampled_labels_drift_less_than_the_likeliest_ones():
    drift = {
        rule: np.mean(
            [abs(run(label_rule=rule, seed=seed, m=2, k=80, rounds=15).drift("share")[-1]) for seed in range(4)]
        )
        for rule in ("argmax", "sample")
    }
    assert drift["sample"] < drift["argmax"]


def test_the_same_seed_gives_the_same_trace():
    tree = DecisionTreeClassifier(max_features=1)
    first, second, other = run(tree, seed=3), run(tree, seed=3), run(tree, seed=4)
    assert (first.statistics["share"] == second.statistics["share"]).all()
    assert (first.statistics["share"] != other.statistics["share"]).any()


def test_a_subsample_keeps_the_size_that_is_trained_on():
    sizes = []

    class Counting(LinearDiscriminantAnalysis):
        def fit(self, X, y):
            sizes.append(len(y))
            return super().fit(X, y)

    run(Counting(), accumulate="subsample")
    assert set(sizes) == {200}
    sizes.clear()
    run(Counting())
    assert sizes == [200 + 50 * t for t in range(11)]


def test_tables_of_both_kinds_run():
    X, y = data(800)
    for table in (pd.DataFrame(X, columns=list("abc")), pl.DataFrame(X, schema=list("abc"))):
        trace = FeedbackLoop(LogisticRegression(), 5, 20, 3).run(
            table[:100], y[:100], table[100:500], y[100:500], table[500:], y[500:], {"share": label_share(1)}
        )
        assert len(trace) == 4


def test_a_low_temperature_is_the_argmax_and_one_is_a_draw():
    X, y = data(500)
    model, rng = LogisticRegression().fit(X, y), np.random.default_rng(0)
    assert (temperature(1e-6)(model, X, rng) == model.predict(X)).all()
    draws = np.mean([temperature(1.0)(model, X, rng) for _ in range(200)], axis=0)
    assert np.abs(draws - model.predict_proba(X)[:, 1]).mean() < 0.04


def test_statistics_of_groups():
    labels, group = np.array([1, 1, 0, 0]), np.array([True, False, True, False])
    assert group_gap(group, 1)(None, labels) == 0
    assert np.isnan(group_gap(np.ones(4, bool), 1)(None, labels))
    with pytest.raises(ValueError, match="one value for each of the 4 rows, got 3"):
        group_gap(np.ones(3, bool), 1)(None, labels)


def test_calibration_of_an_interpolating_and_of_a_constant_learner():
    X, y = data(1500)
    settings = {"n_train": 500, "n_fits": 3}
    constant = consistent_calibration(DummyClassifier(strategy="most_frequent"), X, y, label_share(1), **settings)
    assert constant.unshifted == pytest.approx(0.3, abs=0.03)
    assert constant.delta > constant.unshifted
    tree = consistent_calibration(DecisionTreeClassifier(random_state=0), X, y, label_share(1), **settings)
    assert tree.delta < 0.06


# --- loops of others


@pytest.mark.parametrize("convert", [lambda t: t, pl.from_pandas])
def test_a_log_of_rounds(convert):
    log = pd.DataFrame(
        {
            "round": [0, 0, 0, 0, 3, 3, 3, 7],
            "label": list("yyyn") + list("nny") + ["n"],
            "source": ["human"] * 4 + ["model", "model", "human"] + ["model"],
        }
    )
    trace = trace_of_log(convert(log), "y")
    assert trace.statistics["share"] == pytest.approx([3 / 4, 4 / 7, 4 / 8])
    assert trace.statistics["share_model"][1:] == pytest.approx([0, 0])
    assert np.isnan(trace.statistics["share_human"][2])
    assert trace.provenance["human"] == pytest.approx([4, 5, 5])
    assert list(trace.to_frame()["round"]) == [0, 1, 2]


def test_self_training_is_a_loop():
    X, y = data(400)
    y = np.where(np.arange(400) < 60, y, -1)
    fitted = SelfTrainingClassifier(LogisticRegression(), threshold=0.8).fit(X, y)
    trace = trace_of_self_training(fitted, 1)
    assert trace.statistics["share"][0] == pytest.approx((y[:60] == 1).mean())
    assert trace.provenance["human"] == pytest.approx(np.full(len(trace), 60))
    assert trace.provenance["model"][-1] == (fitted.labeled_iter_ > 0).sum()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: run(rounds=50), ValueError, "at most 36 rounds are possible"),
        (lambda: run(RidgeClassifier(), label_rule="sample"), TypeError, "predict_proba, got RidgeClassifier"),
        (lambda: FeedbackLoop(None, label_rule="best"), ValueError, "label_rule must be one of argmax, sample"),
        (lambda: FeedbackLoop(None, m=-1), ValueError, "m must be at least 0"),
        (lambda: FeedbackLoop(None, accumulate="some"), ValueError, "accumulate must be"),
        (lambda: feedback_bound(3, 0, 1, 1, 0.1), ValueError, "n0 must be at least 1"),
        (lambda: human_rows_needed(10, 0.1, 0.1), ValueError, "tolerance must exceed delta"),
        (lambda: temperature(0), ValueError, "temperature must be above 0"),
        (lambda: trace_of_log(pd.DataFrame({"round": [1]}), 1), ValueError, "'label'"),
        (lambda: trace_of_self_training(SelfTrainingClassifier(), 1), ValueError, "fitted SelfTrainingClassifier"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_loop_without_human_rows_is_warned_of():
    with pytest.warns(UserWarning, match="no finite bound"):
        FeedbackLoop(None, m=0)
