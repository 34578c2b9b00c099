"""Counterfactuals: closed forms of their stability, constraints, search, validity under retraining."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from poise.sensitivity import (
    CounterfactualSearch,
    FeatureConstraints,
    counterfactual_stability,
    retraining_validity,
    validity_guarantee,
)

RNG = np.random.default_rng(0)
X = RNG.random((200, 4))
W = np.array([1.0, -0.5, 0.8, 0.0])
Y = (X @ W > 0.6).astype(int)
MODEL = LogisticRegression(C=100).fit(X, Y)
REJECTED = X[MODEL.predict(X) == 0][:12]


def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        loss = nn.functional.cross_entropy(module(torch.tensor(X, dtype=torch.float32)), torch.tensor(Y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


NET = net()


def test_a_constant_model_is_as_stable_as_it_is_sure():
    found = counterfactual_stability(lambda rows: np.full(len(rows), 0.8), X[:3])
    assert found == pytest.approx(np.full(3, 0.8))


def test_stability_is_at_most_the_probability_and_tends_to_it():
    probability = MODEL.predict_proba(X)[:, 1]
    assert (counterfactual_stability(MODEL, X) <= probability + 1e-12).all()
    assert counterfactual_stability(MODEL, X, sigma=1e-6) == pytest.approx(probability, abs=1e-4)


def test_a_linear_score_has_a_closed_form():
    weights = np.array([0.3, -0.4])

    def score(rows):
        return 0.5 + 0.1 * rows @ weights

    sigma, norm = 0.1, 0.1 * 0.5
    relaxed, lipschitz = (
        counterfactual_stability(score, np.zeros((1, 2)), sigma=sigma, n_samples=400_000, form=form, gamma=norm)[0]
        for form in ("relaxed", "lipschitz")
    )
    assert relaxed == pytest.approx(0.5 - sigma * norm * math.sqrt(2 / math.pi), abs=5e-5)
    chi = math.sqrt(2) * math.gamma(1.5) / math.gamma(1)
    assert lipschitz == pytest.approx(0.5 - sigma * norm * chi, abs=5e-5)
    assert lipschitz <= relaxed


def test_the_guarantee():
    assert validity_guarantee(0.1, 1000, 0.1, 1, 1) == pytest.approx(1 - math.exp(-31.25))


@pytest.mark.parametrize("model", [MODEL, NET, lambda rows: MODEL.predict_proba(rows)[:, 1]])
def test_the_closest_is_valid_and_nearer_than_the_nearest_favourable_row(model):
    search = CounterfactualSearch(model).fit(X)
    found = search.explain(REJECTED)
    assert found.valid.all()
    nearest = np.abs(search._accepted[:, None] - REJECTED).sum(2).min(0)
    assert (found.cost[:, 0] <= nearest + 1e-12).all()
    assert found.cost[:, 0].mean() < 0.8 * nearest.mean()


def test_the_closest_of_a_linear_model_is_at_its_boundary():
    found = CounterfactualSearch(MODEL).fit(X).explain(REJECTED)
    assert MODEL.predict_proba(found.points)[:, 1] == pytest.approx(np.full(12, 0.5), abs=0.02)


def test_constraints_hold_bit_for_bit():
    constraints = FeatureConstraints(features_to_vary=[0, 2], permitted_range={2: (0.0, 0.95)}, increase_only=[0])
    found = CounterfactualSearch(MODEL, constraints=constraints).fit(X).explain(REJECTED)
    there = np.isfinite(found.points).all(1)
    assert there.any()
    points, rows = found.points[there], REJECTED[there]
    assert (points[:, [1, 3]] == rows[:, [1, 3]]).all()
    assert ((points[:, 2] <= 0.95) | (points[:, 2] == rows[:, 2])).all()
    assert (points[:, 0] >= rows[:, 0]).all()


def test_categories_stay_categories():
    rows = np.concatenate([X[:, :2], np.eye(3)[RNG.integers(3, size=200)]], axis=1)
    labels = (rows[:, 0] + rows[:, 2] > 0.9).astype(int)
    model = LogisticRegression(C=100).fit(rows, labels)
    constraints = FeatureConstraints(categories=[[2, 3, 4]])
    found = CounterfactualSearch(model, constraints=constraints).fit(rows).explain(rows[model.predict(rows) == 0][:10])
    groups = found.points[:, 2:]
    assert ((groups == 0) | (groups == 1)).all()
    assert (groups.sum(1) == 1).all()
    assert found.valid.all()


def test_where_nothing_fits_the_row_is_flagged_with_the_reason():
    constraints = FeatureConstraints(features_to_vary=[3])  # the model hardly reads it
    found = CounterfactualSearch(MODEL, constraints=constraints).fit(X).explain(X[[np.argmin(X @ W)]])
    assert np.isnan(found.points).all()
    assert not found.valid[0]
    assert found.reasons[0] == "no favourable training row fits the constraints"


def test_the_robust_neighbour_is_robust_or_says_that_it_is_not():
    found = CounterfactualSearch(MODEL, "robust_neighbour", tau=0.9).fit(X).explain(REJECTED)
    assert (found.robust == (found.stability >= 0.9)).all()
    assert found.robust.all()
    closest = CounterfactualSearch(MODEL).fit(X).explain(REJECTED)
    assert found.stability.mean() > closest.stability.mean()
    none = CounterfactualSearch(lambda rows: np.clip(rows[:, 0], 0, 0.7), "robust_neighbour", tau=0.99).fit(X)
    answer = none.explain(X[X[:, 0] < 0.5][:2])
    assert not answer.robust.any()
    assert "no candidate reaches" in answer.reasons[0]


def test_the_gradient_climbs_to_the_threshold():
    closest = CounterfactualSearch(NET).fit(X).explain(REJECTED)
    climbed = CounterfactualSearch(NET, "robust_gradient", tau=0.8).fit(X).explain(REJECTED)
    assert climbed.valid.all()
    assert climbed.stability.mean() > closest.stability.mean() + 0.1
    assert (climbed.robust | np.array([bool(reason) for reason in climbed.reasons])).all()


def test_robust_points_survive_retraining_more_often():
    def fit(data, seed):
        rows, labels = data
        chosen = np.random.default_rng(seed).permutation(len(labels))
        return LogisticRegression(C=100).fit(rows[chosen], labels[chosen])

    rates = []
    for method in ("closest", "robust_neighbour"):
        points = CounterfactualSearch(MODEL, method).fit(X).explain(REJECTED).points
        validity = retraining_validity(points, fit, X, Y, n_models=10, changes=("bootstrap", "leave_out"))
        assert validity.valid.shape == (10, 12)
        rates.append(validity.rate)
    assert rates[1] > rates[0]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: counterfactual_stability(MODEL, X, sigma=0), ValueError, "sigma must be above 0"),
        (lambda: counterfactual_stability(MODEL, X, n_samples=1), ValueError, "n_samples must be at least 2"),
        (lambda: counterfactual_stability(MODEL, X, form="lipschitz"), ValueError, "gamma must be given"),
        (lambda: counterfactual_stability(lambda r: 2 + r[:, 0], X), ValueError, r"in \[0, 1\]"),
        (lambda: counterfactual_stability(MODEL, X * np.nan), ValueError, "X must be finite"),
        (lambda: counterfactual_stability(MODEL, X, favourable=7), ValueError, "favourable must be one of"),
        (lambda: CounterfactualSearch(MODEL, "robust_gradient"), TypeError, "use 'robust_neighbour'"),
        (lambda: CounterfactualSearch(MODEL, tau=0.4), ValueError, "tau must be in"),
        (lambda: CounterfactualSearch(lambda r: 0 * r[:, 0]).fit(X), ValueError, "some training row"),
        (lambda: CounterfactualSearch(MODEL).fit(X).explain(X[:, :3]), ValueError, "4 columns"),
        (lambda: FeatureConstraints(permitted_range={0: (2, 1)}), ValueError, "low <= high"),
        (lambda: FeatureConstraints([9]).frozen(4), ValueError, r"columns must be in 0 \.\. 3"),
        (lambda: validity_guarantee(0, 1, 1, 1, 1), ValueError, "eps must be above 0"),
        (lambda: retraining_validity(X, None, X, Y, changes=("luck",)), ValueError, "changes must be some of"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
