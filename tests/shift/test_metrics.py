"""Expected metrics in closed form: their special cases, their derivatives, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from poise.shift import METRICS, SampledMetric, cost_per_row
from poise.shift.estimation.baselines import _weighted
from poise.shift.estimation.calibration import Identity, Isotonic
from poise.shift.estimation.expectation import expect, probabilities
from poise.shift.estimation.metrics import metric_named
from poise.shift.estimation.scored_rows import ScoredRows

ORACLES = {
    "accuracy": lambda y, h, p: sk.accuracy_score(y, h),
    "balanced_accuracy": lambda y, h, p: sk.balanced_accuracy_score(y, h),
    "brier": lambda y, h, p: sk.brier_score_loss(y, p),
    "f1": lambda y, h, p: sk.f1_score(y, h),
    "precision": lambda y, h, p: sk.precision_score(y, h),
    "recall": lambda y, h, p: sk.recall_score(y, h),
    "roc_auc": lambda y, h, p: sk.roc_auc_score(y, p),
    "specificity": lambda y, h, p: sk.recall_score(1 - y, 1 - h),
}


def binary(n=60, seed=0, decimals=1):
    random = np.random.default_rng(seed)
    score = np.round(random.random(n), decimals)  # ties
    label = (random.random(n) < 0.5).astype(int)
    label[:2] = 0, 1
    return ScoredRows(score[:, None], (score > 0.45).astype(int), label)


def multiclass(n=60, seed=0):
    random = np.random.default_rng(seed)
    score = random.dirichlet(np.ones(3), n)
    return ScoredRows(score, score.argmax(1), np.r_[0, 1, 2, random.integers(0, 3, n - 3)])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_with_certain_classes_a_metric_is_that_of_scikit_learn(name, seed):
    rows = binary(seed=seed)
    expected = ORACLES[name](rows.label, rows.prediction, rows.score[:, 0])
    assert METRICS[name].realised(rows) == pytest.approx(expected, abs=1e-12)


def test_metrics_of_several_classes_are_those_of_scikit_learn():
    rows = multiclass()
    assert METRICS["accuracy"].realised(rows) == pytest.approx(sk.accuracy_score(rows.label, rows.prediction))
    f1 = sk.f1_score(rows.label, rows.prediction, average="macro")
    assert METRICS["f1"].realised(rows) == pytest.approx(f1)
    auc = sk.roc_auc_score(rows.label, rows.score, multi_class="ovr")
    assert METRICS["roc_auc"].realised(rows) == pytest.approx(auc)


@pytest.mark.parametrize("name", [*METRICS, "cost"])
@pytest.mark.parametrize("rows", [binary(), multiclass()], ids=["binary", "multiclass"])
def test_the_slope_is_the_derivative(name, rows):
    cost = cost_per_row(true_positive=-1, false_positive=2, false_negative=5, true_negative=0)
    if name == "cost" and not rows.is_binary:
        with pytest.raises(ValueError, match="binary"):
            cost.realised(rows)
        return
    metric = cost if name == "cost" else METRICS[name]
    random = np.random.default_rng(0)
    c, direction, h = random.uniform(0.2, 0.8, rows.score.shape), random.normal(size=rows.score.shape), 1e-6
    slope = metric.expected(rows, c)[1]
    numeric = (metric.expected(rows, c + h * direction)[0] - metric.expected(rows, c - h * direction)[0]) / (2 * h)
    assert (slope * direction).sum() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_order_of_rows_changes_nothing_and_the_confusion_matrix_adds_up(seed):
    rows, random = binary(seed=seed), np.random.default_rng(seed)
    c, order = random.random((60, 1)), random.permutation(60)
    for metric in METRICS.values():
        assert metric.expected(rows.take(order), c[order])[0] == pytest.approx(metric.expected(rows, c)[0], abs=1e-12)
    counts = [
        cost_per_row(**{n: float(n == name) for n in NAMES}).expected(rows, c)[0] for name in NAMES
    ]  # fractions of TP, FP, FN, TN
    assert sum(counts) == pytest.approx(1)


NAMES = ("true_positive", "false_positive", "false_negative", "true_negative")


def test_the_expected_auc_of_uninformative_labels_is_one_half():
    rows = binary(decimals=5)
    assert METRICS["roc_auc"].expected(rows, np.full((60, 1), 0.5))[0] == pytest.approx(0.5, abs=1e-12)


def test_what_is_not_defined_is_nan():
    nothing = ScoredRows(np.full((5, 1), 0.1), np.zeros(5, int), np.zeros(5, int))
    assert np.isnan(METRICS["precision"].realised(nothing))
    assert np.isnan(METRICS["roc_auc"].realised(nothing))


def test_drawn_labels_agree_with_the_closed_form_within_their_error():
    random = np.random.default_rng(0)
    rows = binary(400)
    c = random.random((400, 1))
    exact = expect(METRICS["accuracy"], rows, c, [Identity()], 0)
    drawn = expect(SampledMetric("own", lambda y, p: np.mean(y == (p > 0.45)), draws=2000), rows, c, [Identity()], 0)
    assert abs(drawn.value - exact.value) < 4 * drawn.sampling_error
    assert drawn.low == pytest.approx(exact.low, abs=0.01)
    assert drawn.high == pytest.approx(exact.high, abs=0.01)
    assert exact.sampling_error == 0


def test_drawn_labels_of_several_classes_follow_their_probabilities():
    rows = multiclass(3000)
    fraction = SampledMetric("fraction of class 2", lambda y, p: np.mean(y == 2), draws=100)
    found = expect(fraction, rows, rows.score, [Identity()] * 3, 0)
    assert found.value == pytest.approx(rows.score[:, 2].mean(), abs=4 * found.sampling_error)


@pytest.mark.parametrize("name", ["accuracy", "f1", "roc_auc", "recall"])
@pytest.mark.parametrize("make", [binary, multiclass])
def test_intervals_hold_95_of_100_realisations(name, make):
    rows, random = make(500, decimals=4) if make is binary else make(500), np.random.default_rng(1)
    c = rows.score
    found = expect(METRICS[name], rows, c, [Identity()] * c.shape[1], 0)
    inside = 0
    for _ in range(400):
        full = np.c_[1 - c, c] if rows.is_binary else c
        label = (np.cumsum(full, 1) < random.random((500, 1))).sum(1)
        inside += found.low <= METRICS[name].realised(ScoredRows(rows.score, rows.prediction, label)) <= found.high
    assert 0.91 <= inside / 400 <= 0.99


def test_the_calibration_enters_the_interval():
    random = np.random.default_rng(0)
    score = random.random(200)
    label = (random.random(200) < score).astype(int)
    fitted = Isotonic.fit(score, label)
    rows = binary(50_000, decimals=8)
    c = probabilities(rows, [fitted])
    without = expect(METRICS["accuracy"], rows, c, [Identity()], 0)
    found = expect(METRICS["accuracy"], rows, c, [fitted], 0)
    assert found.high - found.low > 5 * (without.high - without.low)


def test_bad_metrics_are_named():
    with pytest.raises(ValueError, match="metrics: 'acuracy' is not known; did you mean accuracy"):
        metric_named("acuracy")
    with pytest.raises(TypeError, match="metrics must hold names"):
        metric_named(3)
    with pytest.raises(ValueError, match="draws must be at least 2"):
        SampledMetric("f", lambda y, p: 0.0, draws=1)
    with pytest.raises(ValueError, match="labels"):
        METRICS["accuracy"].realised(ScoredRows(np.zeros((3, 1)), np.zeros(3, int)))


def test_equal_weights_give_the_plain_metric():
    rows = binary(100)
    for metric in METRICS.values():
        assert _weighted(metric, rows, np.ones(100)) == pytest.approx(metric.realised(rows), abs=1e-12)
