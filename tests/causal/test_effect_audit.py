"""The audit of an effect: planted faults are found, healthy data stay without findings, influence against refits."""

import numpy as np
import pytest
import sklearn
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal import AverageEffect, DRLearner, TLearner, audit_effect
from poise.causal.effect_audit import measure as measuring
from poise.causal.effect_audit.few_rows import Z, rows_to_drop
from poise.causal.effect_audit.refits import Units, changed, few_rows_that_change

from .simulations import confounded

LINE = LinearRegression()


def linear_learner(**settings):
    return DRLearner(outcome=LINE, propensity=LogisticRegression(), effect_model=LINE, **settings)


@pytest.fixture(autouse=True)
def cheap_learners(monkeypatch):
    """Two pairs of fast learners in the place of three."""
    pairs = {"linear": (LINE, LogisticRegression()), "no covariates": (LINE, 0.5)}
    monkeypatch.setattr(measuring, "_learner_pairs", lambda: pairs)


def mean_difference(X, y, t, seed):
    """A function as an estimator: the difference of means and its standard error."""
    parts = [y[t == arm] for arm in (0, 1)]
    variance = sum(part.var(ddof=1) / len(part) for part in parts)
    return parts[1].mean() - parts[0].mean(), np.sqrt(variance)


def trial(n=400, effect=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X, t = rng.normal(size=(n, 2)), np.arange(n) % 2
    return X, effect * t + rng.normal(size=n), t


def test_a_seed_of_the_audit_is_the_random_state():
    X, y, t, _ = confounded(n=300)
    report = audit_effect(linear_learner(random_state=9), X, y, treatment=t, seeds=[5])
    fitted = linear_learner(random_state=5).fit(X, y, treatment=t)
    assert report.meta["estimate"] == fitted.ate().estimate


def test_the_control_of_the_estimator_is_that_of_the_audit():
    X, y, t, _ = confounded(n=300)
    report = audit_effect(linear_learner(control=1), X, y, treatment=t, seeds=1)
    assert all(row[1] < 0 for row in rows_of(report, "Estimates"))


def causes(report):
    return {finding.cause for finding in report.findings}


# --- the influence of rows


def sample_mean(values):
    return AverageEffect(values.mean(), values.std(ddof=1) / np.sqrt(len(values)), influence=values - values.mean())


@pytest.mark.parametrize("change", ["sign", "significance", "sign and significance"])
@pytest.mark.parametrize("shift", [0.05, 0.3])
def test_rows_of_a_mean_change_what_was_predicted(change, shift):
    values = np.random.default_rng(1).normal(shift, 1, size=200)
    before = sample_mean(values)
    drop = rows_to_drop(before.estimate, before.stderr, before.influence, change)
    after = sample_mean(np.delete(values, drop.order[: drop.count]))
    assert changed(before, after, change)
    assert after.estimate == pytest.approx(drop.estimate, abs=1e-12)
    assert after.stderr == pytest.approx(drop.stderr, rel=1e-9)
    one_less = sample_mean(np.delete(values, drop.order[: drop.count - 1]))
    assert not changed(before, one_less, change)


def test_no_smaller_set_changes_the_sign_of_a_mean():
    values = np.array([5.0, 4.0, 1.0, -1.0, -2.0, -2.5, 0.5, -0.5])
    drop = rows_to_drop(values.mean(), 1.0, values - values.mean(), "sign")
    kept = np.sort(values)[: len(values) - drop.count + 1]  # without the largest, one fewer than said
    assert drop.count == 1
    assert kept.mean() > 0


def test_equal_values_hang_on_no_half():
    values = np.full(10, 2.0) + 1e-3 * np.arange(10)
    assert rows_to_drop(values.mean(), 0.1, values - values.mean(), "sign").count is None


def test_one_row_that_makes_the_standard_error_hides_significance():
    values = np.append(np.random.default_rng(0).normal(1, 1, size=100), 300.0)
    before = sample_mean(values)
    assert before.estimate < Z * before.stderr
    drop = rows_to_drop(before.estimate, before.stderr, before.influence, "significance")
    assert drop.order[: drop.count].tolist() == [100]


def test_groups_go_whole():
    values = np.repeat(np.array([3.0, 1.0, -1.0, -1.0, -1.5]), 4)
    groups = np.repeat(np.arange(5), 4)
    units = Units(groups, "groups")

    def refit(left):
        return sample_mean(values[left])

    flip = few_rows_that_change("sign", sample_mean(values), values - values.mean(), units, refit)
    assert (flip.predicted, flip.dropped, flip.of, flip.happened, flip.first) == (1, 1, 5, True, (0,))


def test_a_refit_that_disagrees_is_followed_further():
    """Influences that know nothing of an estimator: the refits correct them."""
    values = np.random.default_rng(0).normal(0.2, 1, size=100)

    def clipped_mean(left):
        return sample_mean(np.clip(values[left], -0.5, 0.5))

    before = clipped_mean(np.arange(100))
    wrong = 20 * before.influence
    flip = few_rows_that_change("sign", before, wrong, Units(np.arange(100)), clipped_mean)
    assert flip.happened
    assert flip.dropped > flip.predicted


@pytest.mark.parametrize(("change", "stderr"), [("direction", 1.0), ("significance", float("nan"))])
def test_unknown_changes_are_refused(change, stderr):
    with pytest.raises(ValueError, match="change"):
        rows_to_drop(1.0, stderr, np.array([1.0, -1.0]), change)


# --- the audit


def test_a_healthy_effect_has_no_findings():
    X, y, t, _ = confounded(n=800)
    report = audit_effect(linear_learner(), X, y, treatment=t, seeds=4)
    assert (report.verdict, report.findings) == ("stable", [])
    assert report.meta["seeds"] == [0, 1, 2, 3]
    assert report.meta["estimate"] == pytest.approx(1, abs=4 * report.meta["stderr"])


def test_ten_people_are_found():
    X, y, t = trial(n=1200, effect=-0.1)
    planted = np.flatnonzero(t == 1)[:10]
    y[planted] += 25
    report = audit_effect(mean_difference, X, y, treatment=t, seeds=1)
    assert report.verdict == "hangs on a few rows"
    finding = next(f for f in report.findings if f.cause == "sign_hangs_on_few_rows")
    assert set(finding.where) <= {f"row {i}" for i in planted}
    assert report.to_html()


def test_a_seed_dependent_estimate_is_found():
    X, y, t = trial()

    def drawn(X, y, t, seed):
        return 1 + np.random.default_rng(seed).normal(), 0.5

    report = audit_effect(drawn, X, y, treatment=t, seeds=8)
    assert "estimate_depends_on_seed" in causes(report)


def test_learners_that_disagree_are_found():
    X, y, t, _ = confounded(n=2000)
    y = y + 3 * X[:, 0] ** 2 * t  # a line is wrong for it, and so is a propensity of one half
    report = audit_effect(linear_learner(), X, y, treatment=t, seeds=1)
    assert "estimate_depends_on_learner" in causes(report)


def test_poor_overlap_is_found():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 2))
    t = (rng.random(1000) < 1 / (1 + np.exp(-6 * X[:, 0]))).astype(int)
    y = X[:, 0] + t + rng.normal(size=1000)
    report = audit_effect(linear_learner(), X, y, treatment=t, seeds=1)
    assert "poor_overlap" in causes(report)


def test_effects_that_are_noise_are_found():
    X, y, t, _ = confounded(n=300, slope=0.0)
    noisy = TLearner(RandomForestRegressor(20, min_samples_leaf=1))
    report = audit_effect(noisy, X, y, treatment=t, seeds=1)
    assert "constant_effect_predicts_better" in causes(report)


def test_effects_that_vary_beat_a_constant():
    X, y, t, _ = confounded(n=600)
    assert "constant_effect_predicts_better" not in causes(audit_effect(TLearner(LINE), X, y, treatment=t, seeds=1))


def rows_of(report, title):
    return next(block for block in report.blocks if getattr(block, "title", "") == title).rows


def test_an_estimator_without_a_standard_error_is_said_to_have_none():
    X, y, t, _ = confounded(n=300)
    report = audit_effect(TLearner(LINE), X, y, treatment=t, seeds=2)
    assert "no standard error" in report.blocks[-1].markdown
    assert len(rows_of(report, "How few rows change the conclusion")) == 1


def test_pipelines_and_tables_are_audited():
    import pandas as pd

    X, y, t, _ = confounded(n=300)
    frame = pd.DataFrame(X, columns=list("abc"))
    pipeline = make_pipeline(StandardScaler(), linear_learner(random_state=5))
    first = audit_effect(pipeline, frame, y, treatment=t, seeds=[3, 4])
    assert first.meta["estimator"] == "DRLearner"
    assert not sklearn.get_config()["enable_metadata_routing"]
    with pytest.raises(sklearn.exceptions.NotFittedError):
        pipeline.predict(frame)
    second = audit_effect(pipeline, frame, y, treatment=t, seeds=[3, 4])
    assert second.meta["estimate"] == first.meta["estimate"]


def test_groups_are_left_out_whole():
    X, y, t, _ = confounded(n=200)
    groups = np.repeat(np.arange(100), 2)
    report = audit_effect(linear_learner(), X, y, treatment=t, groups=groups, seeds=1)
    assert "of 100 groups" in report.summary


class EconMLLike:
    """What an audit needs of EconML's estimators."""

    def __init__(self):
        self.random_state = None

    def fit(self, Y, T, *, X=None, W=None):
        self.effect_ = Y[T == 1].mean() - Y[T == 0].mean()
        return self

    def effect(self, X, T0=0, T1=1):
        return np.full(len(X), self.effect_ if (T0, T1) == (0, 1) else -self.effect_)

    def ate(self, X, T0=0, T1=1):
        return self.effect(X, T0, T1).mean()

    def ate_inference(self, X, T0=0, T1=1):
        raise AttributeError("no inference")

    def robustness_value(self, T):
        return np.float64(0.123) if T == 1 else None


class DoubleMLLike:
    def __init__(self, coef, se):
        self.coef, self.se, self.sensitivity_summary = np.array([coef]), np.array([se]), "the summary"

    def sensitivity_analysis(self):
        return self


class BrokenSensitivity(EconMLLike):
    def robustness_value(self, T):
        raise RuntimeError("needs residuals")


def test_sensitivity_analyses_of_others_are_handed_on():
    X, y, t = trial(effect=1.0)
    assert "0.123" in audit_effect(EconMLLike(), X, y, treatment=t, seeds=1).to_html()
    found = audit_effect(lambda X, y, t, s: DoubleMLLike(*mean_difference(X, y, t, s)), X, y, treatment=t, seeds=1)
    assert "the summary" in found.to_html()
    broken = audit_effect(BrokenSensitivity(), X, y, treatment=t, seeds=1)
    assert "RuntimeError: needs residuals" in broken.blocks[-1].markdown


def test_an_interrupted_audit_reports_what_is_there():
    X, y, t = trial(effect=1.0)
    calls = []

    def slow(X, y, t, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return mean_difference(X, y, t, seed)

    report = audit_effect(slow, X, y, treatment=t, seeds=5)
    assert report.meta["seeds"] == [0, 1]
    assert len(calls) == 3
    assert report.verdict == "not settled"
    assert "interrupted after 2 of 5" in report.blocks[-1].markdown
    assert "few rows" in report.blocks[-1].markdown


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"estimator": LINE}, TypeError, "estimator must have fit"),
        ({"estimator": lambda X, y, t, s: None}, (ValueError, TypeError), "estimator must return|NoneType"),
        ({"treatment": np.arange(400) % 3}, ValueError, "two arms, got 3"),
        ({"treatment": np.linspace(0, 1, 400)}, ValueError, "continuous"),
        ({"y": np.ones(400)}, ValueError, "y must vary"),
        ({"X": np.full((400, 2), np.nan)}, ValueError, "NaN"),
        ({"seeds": 0}, ValueError, "seeds must be at least one"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be at least one, and different"),
        ({"groups": np.arange(400)}, ValueError, "groups must be None for mean_difference"),
    ],
)
def test_bad_input_is_named(change, error, message):
    X, y, t = trial()
    passed = {"estimator": mean_difference, "X": X, "y": y, "treatment": t, "seeds": 1, **change}
    with pytest.raises(error, match=message):
        audit_effect(**passed)
