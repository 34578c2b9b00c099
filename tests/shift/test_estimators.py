"""Estimators of the performance without labels."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import roc_auc_score

from poise import shift
from poise.shift import CBPE, MCBPE, ByNumber, ConstantThreshold, IntervalThreshold, WeightedCBPE

ROLES = {"y_true": "y", "y_score": "p", "features": ["x", "z"]}
METHODS = [
    CBPE,
    MCBPE,
    WeightedCBPE,
    shift.ConstantPerformance,
    shift.AverageThresholdedConfidence,
    shift.DifferenceOfConfidence,
    shift.ImportanceWeighting,
    shift.ReverseTesting,
]


class Constant(ClassifierMixin, BaseEstimator):
    """A classifier that cannot tell two samples apart."""

    def fit(self, x, y):
        self.classes_, self.q_ = np.array([0, 1]), np.mean(y)
        return self

    def predict_proba(self, x):
        return np.tile([1 - self.q_, self.q_], (len(x), 1))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_near_the_metrics_of_unshifted_rows(method, reference, production):
    found = method(["accuracy", "roc_auc"]).fit(reference, **ROLES).estimate(production)
    assert found["metric"].tolist() == ["accuracy", "roc_auc"]
    np.testing.assert_allclose(
        found["value"], found["realised"], atol=0.12 if "Confidence" in method.__name__ else 0.05
    )


def test_weights_correct_what_calibration_alone_cannot():
    # The calibration of the score depends on an input that is not the score: z moves, the scores do not.
    def world(n, seed, shift):
        random = np.random.default_rng(seed)
        x, z = random.normal(size=n), random.normal(shift, 1, n)
        y = random.random(n) < 1 / (1 + np.exp(-x * (1 + z)))
        return pd.DataFrame({"x": x, "z": z, "p": 1 / (1 + np.exp(-x)), "y": y.astype(int)})

    reference, new = world(10_000, 0, 0.0), world(10_000, 1, 1.0)
    errors = {}
    for method in (CBPE, WeightedCBPE):
        row = method(["accuracy"]).fit(reference, **ROLES).estimate(new).iloc[0]
        errors[method] = abs(row["value"] - row["realised"])
        assert method is CBPE or row["low"] <= row["realised"] <= row["high"]
    assert errors[WeightedCBPE] < 0.4 * errors[CBPE]


def test_estimates_are_of_the_rows_that_were_given_and_of_no_others(reference, production):
    estimator = CBPE(chunk=1000).fit(reference, **ROLES)
    estimator.estimate(reference)
    found = estimator.estimate(production)
    assert found["rows"].sum() == 3 * len(production)
    pd.testing.assert_frame_equal(found, CBPE(chunk=1000).fit(reference, **ROLES).estimate(production))


def test_fitting_twice_is_fitting_once(reference, production):
    once = WeightedCBPE().fit(reference, **ROLES)
    twice = WeightedCBPE().fit(production, **ROLES).fit(reference, **ROLES)
    pd.testing.assert_frame_equal(once.estimate(production), twice.estimate(production))


def test_without_chunks_there_is_one_row_with_the_pooled_auc(reference, production):
    found = CBPE(["roc_auc"]).fit(reference, **ROLES).estimate(production)
    assert len(found) == 1
    assert found["rows"].item() == len(production)
    assert found["realised"].item() == pytest.approx(roc_auc_score(production["y"], production["p"]), abs=1e-12)


def test_nine_chunks(reference, make_table):
    found = CBPE(["accuracy"], chunk=ByNumber(9)).fit(reference, **ROLES).estimate(make_table(5001, 5))
    assert len(found) == 9
    assert found["rows"].max() - found["rows"].min() <= 1


def test_chunks_by_day(reference, production):
    found = CBPE(["accuracy"], chunk="1D").fit(reference, **ROLES, timestamp="day").estimate(production)
    assert len(found) == 8
    assert found["first_time"].iloc[1].startswith("2024-01-02")


def test_order_of_rows_within_a_chunk_changes_nothing(reference, production):
    estimator = CBPE().fit(reference, **ROLES)
    one, two = estimator.estimate(production), estimator.estimate(production.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(one, two, rtol=1e-10)


def test_a_constant_domain_classifier_gives_the_accuracy_of_the_reference(reference):
    # A level of isotonic calibration is the mean of the labels in it: with a decision threshold between two levels,
    # the expected accuracy on the reference itself is the realised one.
    plain = shift.estimation.calibration.Isotonic.fit(reference["p"].to_numpy(), reference["y"].to_numpy())
    step = plain.scores[np.flatnonzero(np.diff(plain.values) > 0)[10]]
    threshold = float(np.nextafter(step, 1))
    estimator = WeightedCBPE(["accuracy"], classifier=Constant())
    estimator.fit(reference, **ROLES, decision_threshold=threshold)
    weighted = estimator._weighted(np.ones(len(reference)))
    value = estimator._values(estimator.sample_, weighted, 0)["accuracy"].value
    assert value == pytest.approx(estimator.reference_values_["accuracy"], abs=1e-12)
    row = estimator.estimate(reference).iloc[0]
    assert "not told from the reference (AUC 0.500)" in row["fallback"]


def test_a_monotone_transform_of_the_scores_changes_nothing(reference, shifted):
    both = []
    for power in (1, 3):
        old, new = (
            frame.assign(h=(frame["p"] >= 0.5).astype(int), p=frame["p"] ** power) for frame in (reference, shifted)
        )
        both.append(WeightedCBPE().fit(old, **ROLES, y_pred="h").estimate(new))
    np.testing.assert_allclose(both[0]["value"], both[1]["value"], atol=1e-12)


def test_atc_on_the_reference_is_its_metric(reference):
    found = shift.AverageThresholdedConfidence(["accuracy", "f1"]).fit(reference, **ROLES).estimate(reference)
    np.testing.assert_allclose(found["value"], found["realised"], atol=1.5 / len(reference))


@pytest.mark.parametrize("make", [pl.from_pandas, lambda t: pa.Table.from_pandas(t, preserve_index=False)])
def test_polars_and_arrow_give_what_pandas_gives(make, reference, shifted):
    expected = WeightedCBPE(chunk=2000).fit(reference, **ROLES).estimate(shifted)
    found = WeightedCBPE(chunk=2000).fit(make(reference), **ROLES).estimate(make(shifted))
    assert type(found) is type(make(reference))
    values = found["value"].to_numpy() if isinstance(found, pl.DataFrame) else found["value"].to_pylist()
    np.testing.assert_array_equal(values, expected["value"])


def test_several_classes():
    random = np.random.default_rng(0)

    def table(n, seed):
        draws = np.random.default_rng(seed)
        p = draws.dirichlet([1, 2, 1], n)
        label = (np.cumsum(p, 1) < draws.random((n, 1))).sum(1)
        frame = pd.DataFrame(p, columns=["p_a", "p_b", "p_c"]).assign(y=np.array(list("abc"))[label], x=p[:, 0])
        return frame.assign(x=frame["x"] + 0.1 * random.normal(size=n))

    roles = {"y_true": "y", "y_score": {"a": "p_a", "b": "p_b", "c": "p_c"}, "features": ["x"]}
    for method in (CBPE, WeightedCBPE):
        found = method(["accuracy", "f1", "roc_auc"]).fit(table(5000, 1), **roles).estimate(table(5000, 2))
        assert (found["low"] <= found["realised"]).all()
        assert (found["realised"] <= found["high"]).all()


def test_any_function_of_labels_and_scores_and_any_cost(reference, production):
    def regret(y_true, y_score):
        return float(np.mean(np.where(y_true == 1, 1 - y_score, y_score)))

    cost = shift.cost_per_row(true_positive=0, false_positive=1, false_negative=5, true_negative=0)
    found = CBPE([regret, cost]).fit(reference, **ROLES).estimate(production)
    assert found["metric"].tolist() == ["regret", "cost_per_row"]
    assert found["sampling_error"].iloc[0] > 0
    assert found["sampling_error"].iloc[1] == 0
    np.testing.assert_allclose(found["value"], found["realised"], rtol=0.1)


def test_thresholds(reference, production):
    alerts = {}
    for threshold in (ConstantThreshold(low=0.99), ConstantThreshold(high=1.0), IntervalThreshold(0.5), None):
        found = CBPE(["accuracy"], threshold=threshold).fit(reference, **ROLES).estimate(production)
        alerts[threshold] = bool(found["alert"].item())
    assert list(alerts.values()) == [True, False, False, False]
    half = CBPE(["accuracy"], threshold=IntervalThreshold()).fit(reference, **ROLES)
    assert half.bounds_["accuracy"] == (half.reference_values_["accuracy"],) * 2


def test_far_rows_are_counted_as_unsupported(reference, make_table):
    row = WeightedCBPE(["accuracy"]).fit(reference, **ROLES).estimate(make_table(2000, 3, shift=8.0)).iloc[0]
    assert row["unsupported_fraction"] > 0.9
    assert row["domain_auc"] > 0.99


def test_the_same_seed_gives_the_same_estimates(reference, shifted):
    one, two = (WeightedCBPE(seed=4).fit(reference, **ROLES).estimate(shifted) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)


def with_(frame, **columns):
    return frame.assign(**columns)


@pytest.mark.parametrize(
    ("change", "roles", "message"),
    [
        ({"p": lambda t: 10 * t["p"]}, {}, "must hold probabilities in .0, 1., such as from predict_proba"),
        ({"p": lambda t: t["p"].where(t.index > 2)}, {}, "3 missing scores"),
        ({"y": lambda t: t["y"].where(t.index > 3)}, {}, "must have no missing labels, got 4"),
        ({"y": 1}, {}, "must hold two classes, got only .1."),
        ({"y": lambda t: t["x"]}, {}, "classification only, no regression"),
        ({"y": lambda t: t.index % 3}, {}, "y_score must map each of the 3 classes"),
        (
            {"y": lambda t: t["y"].map({0: "no", 1: "yes"})},
            {},
            "positive must be one of the labels .'no', 'yes'., got 1",
        ),
        ({}, {"y_true": "label"}, "reference must have the columns label; it has"),
        ({}, {"features": ["x", "w"]}, "reference must have the columns w"),
        ({}, {"timestamp": "x"}, "must hold dates or times"),
        ({"p": lambda t: t["p"].astype(str)}, {}, "must hold numbers"),
    ],
)
def test_bad_references_are_named(change, roles, message, reference):
    with pytest.raises(ValueError, match=message):
        CBPE().fit(reference.assign(**change), **{**ROLES, **roles})


def test_text_labels_with_a_positive_class(reference, production):
    names = reference.assign(y=reference["y"].map({0: "no", 1: "yes"}))
    found = CBPE(["f1"]).fit(names, **ROLES, positive="yes").estimate(production.drop(columns="y"))
    assert found["value"].item() == CBPE(["f1"]).fit(reference, **ROLES).estimate(production)["value"].item()
    assert found["realised"].isna().item()


def test_bad_production_is_named(reference, production):
    estimator = WeightedCBPE().fit(reference, **ROLES)
    with pytest.raises(ValueError, match="production must have the columns z"):
        estimator.estimate(production.drop(columns="z"))
    with pytest.raises(ValueError, match="at least 50 rows, got 20"):
        estimator.estimate(production, chunk=20)
    with pytest.raises(ValueError, match="at least one row"):
        estimator.estimate(production.iloc[:0])
    with pytest.raises(TypeError, match="production must be a pandas or Polars data frame"):
        estimator.estimate(production.to_numpy())
    with pytest.raises(ValueError, match="CBPE must be fitted"):
        CBPE().estimate(production)
    with pytest.raises(ValueError, match="metrics must be a list"):
        CBPE("accuracy")


def test_small_chunks_are_warned_of(reference, production):
    with pytest.warns(UserWarning, match="chunks of 100 rows"):
        CBPE(["accuracy"], chunk=100).fit(reference, **ROLES).estimate(production)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CBPE(["accuracy"], chunk=500).fit(reference, **ROLES).estimate(production)


def test_predictions_that_do_not_follow_from_the_scores_are_noted(reference):
    with pytest.warns(UserWarning, match="the prediction is not that of a score of 0.5"):
        estimator = CBPE().fit(reference.assign(h=1), **ROLES, y_pred="h")
    assert any("the prediction is not that of a score of 0.5" in note for note in estimator.reader_.notes)


def test_missing_and_unseen_values_of_features_are_accepted(reference, shifted):
    old = reference.assign(c=np.where(reference["x"] > 0, "a", "b"))
    new = shifted.assign(c=np.where(shifted["x"] > 0, "a", "new"), z=shifted["z"].where(shifted.index > 100))
    found = WeightedCBPE(["accuracy"]).fit(old, y_true="y", y_score="p", features=["x", "z", "c"]).estimate(new)
    assert np.isfinite(found["value"]).all()


def test_columns_that_are_no_features_are_left_out_with_a_reason(reference):
    table = reference.assign(id=np.arange(len(reference)), year=2015)
    estimator = CBPE().fit(table, y_true="y", y_score="p")
    assert estimator.reader_.features == ("x", "z")
    assert set(estimator.reader_.left_out) == {"day", "id", "year"}


def test_a_chunk_is_compared_with_its_labels_once_all_are_known(reference, production):
    late = production.assign(y=production["y"].where(production.index < 2500))
    found = CBPE(["accuracy"], chunk=1000).fit(reference, **ROLES).estimate(late)
    assert found["realised"].notna().tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"must be one of \[0, 1\], got 7.0"):
        CBPE(["accuracy"]).fit(reference, **ROLES).estimate(late.assign(y=late["y"].replace(1, 7)))


def test_the_memory_does_not_grow_with_a_wide_table():
    random = np.random.default_rng(0)
    wide = pd.DataFrame(random.normal(size=(100_000, 100)), columns=[f"x{i}" for i in range(100)])  # 80 MB
    wide["p"] = 1 / (1 + np.exp(-wide["x0"]))
    wide["y"] = (random.random(len(wide)) < wide["p"]).astype(int)
    estimator = WeightedCBPE(["accuracy"], chunk=50_000, classifier=Constant(), max_rows=5_000)
    estimator.fit(wide.iloc[:5_000], y_true="y", y_score="p")
    tracemalloc.start()
    estimator.estimate(wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("kind", ["category", "ordered", "object", "string"])
def test_categories_are_coded_by_size_or_in_their_own_order(kind, reference):
    values = np.array(["10", "9", "b", "a"])[np.arange(len(reference)) % 4]
    order = ["b", "9", "a", "10"]
    made = {
        "category": lambda: pd.Categorical(values),
        "ordered": lambda: pd.Categorical(values, categories=order, ordered=True),
        "object": lambda: values.astype(object),
        "string": lambda: pd.array(values, dtype="string"),
    }[kind]()
    estimator = CBPE().fit(reference.assign(c=made), y_true="y", y_score="p", features=["x", "c"])
    assert list(estimator.reader_.categories["c"]) == (order if kind == "ordered" else ["9", "10", "a", "b"])


def test_on_unshifted_rows_weights_do_no_harm(reference, make_table):
    new = make_table(4_000, 11)
    plain, weighted = (method().fit(reference, **ROLES).estimate(new) for method in (CBPE, WeightedCBPE))
    harm = (weighted["value"] - weighted["realised"]).abs() - (plain["value"] - plain["realised"]).abs()
    assert (harm <= (plain["high"] - plain["low"]) / 2).all()
