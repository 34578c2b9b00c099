"""The audits of loops on data whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from poise.loops import ClassConditionalGaussian, audit_augmentation, audit_loop


def overlapping(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    return rng.normal(size=(n, 3)) + 0.7 * y[:, None], y


SMALL = {"m": 5, "k": 45, "rounds": 12, "n_start": 150, "seeds": 3}


def test_a_mode_seeking_classifier_drifts_and_drawn_labels_do_not():
    settings = {**SMALL, "m": 4, "k": 146, "seeds": 5}
    report = audit_loop(LinearDiscriminantAnalysis(), *overlapping(), **settings)
    assert report.verdict == "the loop drifts"
    assert report.findings[0].cause == "bias_amplification"
    rows = {row[0]: row for row in report.blocks[1].rows}
    assert set(rows) == {"likeliest label", "true label", "drawn label", "more human rows"}
    assert abs(rows["drawn label"][3]) < abs(rows["likeliest label"][3])
    assert abs(rows["true label"][3]) < 0.05


def test_separable_classes_do_not_drift():
    X, y = overlapping()
    assert audit_loop(LinearDiscriminantAnalysis(), X + 20 * y[:, None], y, **SMALL).verdict == "the loop is stable"


def test_a_classifier_without_probabilities_is_audited_without_that_loop():
    X, y = overlapping()
    report = audit_loop(RidgeClassifier(), pd.DataFrame(X), y, **SMALL)
    assert "drawn label: RidgeClassifier has no predict_proba" in report.blocks[-1].markdown


def test_a_loop_without_human_rows_is_named():
    with pytest.warns(UserWarning, match="no finite bound"):
        report = audit_loop(GaussianNB(), *overlapping(), **{**SMALL, "m": 0})
    assert "no_human_rows" in {finding.cause for finding in report.findings}


def test_an_own_statistic_and_the_same_answer_again():
    def share_zero(X, labels):
        return float((labels == 0).mean())

    first, second = (audit_loop(GaussianNB(), *overlapping(), share_zero, **SMALL) for _ in range(2))
    assert "share_zero" in first.summary
    assert first.summary == second.summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 60}, "at most 45 rounds are possible"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"tolerance": 0}, "tolerance must be above 0"),
        ({"statistic": "rate"}, "statistic must be 'positive_rate'"),
    ],
)
def test_bad_input_of_the_loop_audit(change, words):
    with pytest.raises(ValueError, match=words):
        audit_loop(GaussianNB(), *overlapping(), **{**SMALL, **change})


# --- synthetic rows


class Memory:
    """A generator that returns training rows."""

    def fit(self, X, y):
        self.rows = X, y
        return self

    def sample(self, n):
        pick = np.random.default_rng(0).integers(len(self.rows[1]), size=n)
        return self.rows[0][pick], self.rows[1][pick]


class Constant(Memory):
    """A generator that returns one point for each class."""

    def sample(self, n):
        X, y = self.rows
        labels = np.resize(np.unique(y), n)
        return np.stack([X.mean(0)] * n), labels


def gaussians(n, dim=20, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return rng.normal(size=(n, dim)) + 0.5 * y[:, None], y


def test_a_good_generator_helps_a_tree():
    report = audit_augmentation(
        DecisionTreeClassifier(), gaussians(150), ClassConditionalGaussian(), ratios=(1, 10), seeds=6
    )
    assert report.verdict == "add 1,050 synthetic rows"
    rows = [row[0] for row in report.blocks[1].rows]
    assert {"real rows with noise", "real rows repeated", "half of the real rows"} <= set(rows)


def test_a_memory_is_called_one():
    report = audit_augmentation(LogisticRegression(), gaussians(150), Memory(), ratios=(1,), seeds=3)
    assert report.findings[0].cause == "memorising_generator"
    assert report.blocks[2].rows[0][1] == 1.0


def test_a_constant_generator_is_flagged_in_the_first_generation():
    report = audit_augmentation(LogisticRegression(), gaussians(150), Constant(), ratios=(1,), seeds=3)
    causes = {finding.cause: finding for finding in report.findings}
    assert causes["collapsed_generator"].severity == "error"
    assert "first generation" in causes["collapsed_generator"].summary


def test_48_rows_are_too_few():
    report = audit_augmentation(LogisticRegression(), gaussians(48), ClassConditionalGaussian(), ratios=(1,), seeds=3)
    assert report.verdict == "too few rows to tell"


def test_a_function_and_a_generator_without_fit():
    trained = ClassConditionalGaussian(random_state=0).fit(*gaussians(400, seed=1))

    class Sampler:
        def sample(self, n):
            return trained.sample(n)

    report = audit_augmentation(
        lambda X, y, seed: GaussianNB().fit(X, y), gaussians(150), Sampler(), ratios=(1,), seeds=2
    )
    assert "may" in report.blocks[-1].markdown or "if it has seen" in report.blocks[-1].markdown


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: audit_augmentation(3, gaussians(40), Memory()), TypeError, "fit must be a classifier"),
        (lambda: audit_augmentation(GaussianNB(), gaussians(40), object()), TypeError, "generator must have sample"),
        (lambda: audit_augmentation(GaussianNB(), gaussians(40), Memory(), ratios=(0,)), ValueError, "ratios must be"),
        (lambda: audit_augmentation(GaussianNB(), gaussians(6), Memory()), ValueError, "four rows each"),
    ],
)
def test_bad_input_of_the_augmentation_audit(call, error, words):
    with pytest.raises(error, match=words):
        call()
