"""The audit of retraining on models whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from poise.sensitivity import NonDeterministicTraining, audit_retraining, churn

X, Y = load_breast_cancer(return_X_y=True)
TRAIN = X[:150], Y[:150]
TEST = X[150:400]


class Coin(ClassifierMixin, BaseEstimator):
    """Decides by its seed, by its first row, or by a generator that no seed reaches."""

    luck = None  # a generator that goes on from fit to fit

    def __init__(self, by="seed", random_state=None):
        self.by = by
        self.random_state = random_state

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        source = {"seed": self.random_state, "row": int(1e6 * X[0, 0]), "luck": Coin.luck}
        self.draws_ = np.random.default_rng(source[self.by]).integers(2, size=1000)
        return self

    def predict(self, X):
        return self.draws_[: len(X)]


def causes(report):
    return [finding.cause for finding in report.findings]


def test_naive_bayes_does_not_flip_with_seed_or_order():
    report = audit_retraining(GaussianNB(), *TRAIN, X_test=TEST, n_retrain=4, n_bags=0)
    assert not {"seed_churn", "row_order_churn", "nondeterministic_training"} & set(causes(report))
    assert "takes no random_state" in report.blocks[-1].markdown


def test_causes_are_told_apart():
    by_seed = audit_retraining(Coin("seed"), *TRAIN, X_test=TEST, n_retrain=4)
    assert causes(by_seed) == ["seed_churn"]
    by_row = audit_retraining(Coin("row"), *TRAIN, X_test=TEST, n_retrain=4)
    assert "row_order_churn" in causes(by_row)
    assert "seed_churn" not in causes(by_row)


def test_a_training_that_no_seed_reaches_stops_or_sets_the_floor(monkeypatch):
    monkeypatch.setattr(Coin, "luck", np.random.default_rng(0))
    with pytest.raises(NonDeterministicTraining, match="allow_nondeterministic=True"):
        audit_retraining(Coin("luck"), *TRAIN, X_test=TEST, n_retrain=3)
    report = audit_retraining(Coin("luck"), *TRAIN, X_test=TEST, n_retrain=3, allow_nondeterministic=True)
    assert causes(report)[0] == "nondeterministic_training"
    assert report.blocks[1].rows[0][3] > 0.3


def test_bags_flip_less_than_the_tree():
    report = audit_retraining(
        DecisionTreeClassifier(max_features=5), *TRAIN, X_test=TEST, n_retrain=5, n_bags=40, cost_per_flip=2.0
    )
    assert "seed_churn" in causes(report)
    flips = {(row[0], row[1]): row[3] for row in report.blocks[1].rows}
    assert flips["seed", "40 bags"] < flips["seed", "single"]
    assert "brings it to" in report.summary
    assert "at 2 a flip" in report.summary


def test_a_pipeline_on_a_data_frame_gets_its_seed():
    frame = pd.DataFrame(TRAIN[0])
    model = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_features=3))
    first, second = (
        audit_retraining(model, frame, TRAIN[1], X_test=pd.DataFrame(TEST), n_retrain=3, n_bags=0) for _ in range(2)
    )
    assert first.summary == second.summary
    assert "takes no random_state" not in first.blocks[-1].markdown
    stable = make_pipeline(StandardScaler(), LogisticRegression())
    assert "seed_churn" not in causes(audit_retraining(stable, frame, TRAIN[1], X_test=frame, n_retrain=3, n_bags=0))


def test_regressors_move_by_more_than_the_tolerance_or_not():
    rows, target = load_diabetes(return_X_y=True)
    report = audit_retraining(Ridge(), rows[:200], target[:200], X_test=rows[200:], n_retrain=3, n_bags=20)
    assert report.verdict == "decisions are stable"
    assert "predictions move" in report.summary


def test_one_row_that_decides_is_named():
    """A stump whose threshold hangs on one extreme row."""

    class LargestValue(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            self.limit_ = X[:, 0].max() / 2
            return self

        def predict_proba(self, X):
            high = (X[:, 0] > self.limit_).astype(float)
            return np.stack([1 - high, high], 1)

        def predict(self, X):
            return self.classes_[self.predict_proba(X).argmax(1)]

    rows = np.random.default_rng(0).random((100, 1))
    rows[37] = 1.9
    labels = np.arange(100) % 2
    report = audit_retraining(LargestValue(), rows, labels, X_test=rows, n_retrain=2, n_bags=300)
    named = {finding.cause: finding for finding in report.findings}["influential_rows"]
    assert named.where[0] == "row 37"


def test_an_interrupted_audit_reports_what_is_there_and_continues(tmp_path):
    state = {"left": 5}

    class Stopping(GaussianNB):
        def fit(self, X, y):
            state["left"] -= 1
            if state["left"] == 0:
                raise KeyboardInterrupt
            return super().fit(X, y)

    report = audit_retraining(Stopping(), *TRAIN, X_test=TEST, n_retrain=3, n_bags=0, folder=tmp_path)
    assert "Not finished" in report.blocks[-1].markdown
    whole = audit_retraining(Stopping(), *TRAIN, X_test=TEST, n_retrain=3, n_bags=0, folder=tmp_path)
    assert "Not finished" not in whole.blocks[-1].markdown


def test_churn_of_labels_and_numbers():
    found = churn(np.array([0, 1, 1, 0]), np.array([[0, 1, 0, 0], [0, 0, 0, 0]]))
    assert (found.flip_rate, found.ambiguity, found.discrepancy) == (3 / 8, 2 / 4, 2 / 4)
    assert found.per_row.tolist() == [0, 0.5, 1, 0]
    assert churn(np.zeros(3), np.array([[0.1, 0.2, 0.3]]), tolerance=0.25).flip_rate == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_retrain": 0}, "n_retrain must be at least 1"),
        ({"leave_out": 1.0}, "leave_out must be in"),
        ({"tolerance": -1}, "tolerance must be at least 0"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        audit_retraining(GaussianNB(), *TRAIN, X_test=TEST, **change)
