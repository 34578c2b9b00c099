"""Evolved features: crossover, batched against serial training, selection, bad input."""

import math

import numpy as np
import pytest
import sklearn
import torch
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.causal import EvolvedFeatures, TLearner, representation_report
from poise.causal.representation.cohort import (
    Training,
    cross_entropy,
    hidden,
    random_cohort,
    squared_error,
    train_cohort,
)
from poise.causal.representation.crossover import aligned, crossover
from poise.causal.representation.evolved_features import _Evolution

from .simulations import confounded

TRAINING = Training(lr=0.05, batch=16, patience=5, max_epochs=30, l2=(0.01, 0.01), dropout=0.1)
QUICK = {"latent_dim": 4, "n_generations": 2, "max_epochs": 20, "random_state": 0}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def tensors(n=90, seed=0):
    X, y, t, _ = confounded(n=n, seed=seed)
    x, y, t = (torch.as_tensor(v, dtype=torch.float64) for v in (X, (y - y.mean()) / y.std(), t))
    return (x[:60], x[60:]), (y[:60], y[60:]), (t[:60], t[60:])


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("loss", [squared_error, cross_entropy])
def test_a_cohort_trains_as_its_members_do_alone(activation, loss):
    x, y, t = tensors()
    target = y if loss is squared_error else t
    start = random_cohort(3, 5, generators(1, 2, 3), x[0])
    together, losses = train_cohort(
        start, x, target, loss, activation, TRAINING, torch.Generator().manual_seed(0), generators(4, 5, 6)
    )
    for i, seed in enumerate((4, 5, 6)):
        alone, own = train_cohort(
            start.members([i]),
            x,
            target,
            loss,
            activation,
            TRAINING,
            torch.Generator().manual_seed(0),
            generators(seed),
        )
        for part, expected in zip(together.members([i]).parts, alone.parts, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(losses[i : i + 1], own)


def test_training_keeps_the_best_epoch():
    x, y, _ = tensors()
    start = random_cohort(3, 5, generators(1), x[0])
    order = torch.Generator().manual_seed(0)
    _, loss = train_cohort(start, x, y, squared_error, "tanh", TRAINING, order, generators(2))
    before = squared_error(torch.zeros_like(y[1]), y[1]).mean()
    assert loss < before
    assert loss.grad_fn is None


def test_every_unit_of_a_child_is_a_unit_of_one_parent():
    first, second = (random_cohort(7, 50, generators(seed), torch.zeros(1, dtype=torch.float64)) for seed in (1, 2))
    second = type(second)(second.w, second.b + 1, second.v, second.c)
    w, b = crossover(first, second, torch.Generator().manual_seed(0))
    from_second = b[0] == 1
    assert 10 < from_second.sum() < 40
    assert torch.equal(w[0][:, from_second], second.w[0][:, from_second])
    assert torch.equal(w[0][:, ~from_second], first.w[0][:, ~from_second])


def test_units_are_aligned_by_correlation():
    values = torch.randn(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = [3, 0, 5, 1, 2, 4]
    shuffled = -2 * values[:, order] + 1
    assert torch.allclose(shuffled[:, aligned(values, shuffled)], -2 * values + 1)


def evolution(settings, n=200, seed=0, independent=False):
    X, y, t, _ = confounded(n=n, seed=seed)
    if independent:
        t = np.arange(n) % 2
    return _Evolution(settings, X, y, t, np.random.RandomState(0))


def test_the_best_member_survives_unchanged():
    first = evolution(EvolvedFeatures(**{**QUICK, "n_generations": 1}))
    kept = first.run()[0]
    second = evolution(EvolvedFeatures(**{**QUICK, "n_generations": 2}))
    members = second.run()
    (survivor,) = [m for m in members if torch.equal(m.network.w, kept.network.w)]
    assert survivor.fitness == kept.fitness  # the same probe of the same member
    assert torch.equal(survivor.network.v, kept.network.v)
    assert second.history[0] == first.history[0]
    assert second.history[1][0] >= first.history[0][0]


def test_with_a_large_penalty_the_fittest_predicts_the_outcome_best():
    members = evolution(EvolvedFeatures(**{**QUICK, "outcome_penalty": 1e6})).run()
    assert members[0].outcome_loss == min(member.outcome_loss for member in members)


def test_an_independent_treatment_is_as_hard_to_predict_as_a_coin():
    run = evolution(EvolvedFeatures(**QUICK), n=400, independent=True)
    run.run()
    assert run.history[0][0] == pytest.approx(math.log(2), abs=0.05)


def test_one_network_is_a_plain_fit():
    X, y, t, _ = confounded(n=120)
    settings = {**QUICK, "select": False}
    one = EvolvedFeatures(**settings, cohort_size=1).fit(X, y, treatment=t)
    many = EvolvedFeatures(**settings, cohort_size=4).fit(X, y, treatment=t)
    np.testing.assert_array_equal(one.transform(X), many.transform(X))
    assert one.history_ == []


@pytest.mark.parametrize("align", [False, True])
def test_the_same_seed_gives_the_same_features(align):
    X, y, t, _ = confounded(n=120)
    first, second = (EvolvedFeatures(**QUICK, align=align).fit(X, y, treatment=t) for _ in range(2))
    np.testing.assert_array_equal(first.transform(X), second.transform(X))
    other = EvolvedFeatures(**{**QUICK, "random_state": 1}, align=align).fit(X, y, treatment=t)
    assert not np.array_equal(first.transform(X), other.transform(X))


def test_features_are_the_hidden_layer():
    X, y, t, _ = confounded(n=120)
    state = torch.get_rng_state()
    features = EvolvedFeatures(**QUICK).fit(X, y, treatment=t)
    assert torch.equal(torch.get_rng_state(), state)
    phi = features.transform(X)
    np.testing.assert_allclose(phi, np.tanh(X @ features.components_ + features.intercept_))
    assert np.abs(phi).max() < 1
    assert list(features.get_feature_names_out()) == [f"evolvedfeatures{i}" for i in range(4)]
    scaled = EvolvedFeatures(**QUICK).fit(X, 1000 * y - 5, treatment=t)  # the outcome is standardised
    np.testing.assert_allclose(scaled.transform(X), phi, atol=1e-8)


def test_features_stand_in_a_pipeline_before_a_learner():
    X, y, t, _ = confounded(n=200)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), EvolvedFeatures(**QUICK), TLearner(LinearRegression()))
        pipeline.fit(X, y, treatment=t)
    assert pipeline.predict(X).shape == (200,)


def test_a_constant_outcome_collapses_and_says_so():
    X, _, t, _ = confounded(n=200)
    with pytest.warns(UserWarning, match="features have collapsed"):
        features = EvolvedFeatures(**{**QUICK, "max_epochs": 300}, select=False).fit(X, np.ones(200), treatment=t)
    assert np.linalg.norm(features.components_) < 1e-2


def test_a_report_compares_raw_one_network_and_evolved():
    X, y, t, _ = confounded(n=160)
    report = representation_report(EvolvedFeatures(**QUICK), TLearner(LinearRegression()), X, y, treatment=t, seeds=2)
    means, pairs = report.blocks
    assert [row[0] for row in means.rows] == ["raw", "one network", "evolved"]
    assert [row[0] for row in pairs.rows] == ["raw", "one network"]
    with pytest.raises(ValueError, match="seeds"):
        representation_report(EvolvedFeatures(**QUICK), TLearner(), X, y, treatment=t, seeds=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"n_progenitors": 1}, "n_progenitors must be at least 2"),
        ({"cohort_size": 1}, "cohort_size must be at least 2"),
        ({"cohort_size": 3, "n_progenitors": 3}, "cohort_size must be at least 4"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie in"),
        ({"n_generations": 0}, "n_generations must be at least 1"),
        ({"X": np.full((100, 3), np.nan)}, "NaN"),
        ({"treatment": np.arange(100) % 3}, "binary, got 3 arms"),
        ({"treatment": np.zeros(100)}, "at least two arms"),
        ({"treatment": (np.arange(100) < 2).astype(int)}, "treatment must vary in the validation rows"),
        ({"instrument": np.zeros(100)}, "instrument must be None"),
    ],
)
def test_bad_input_is_named(change, message):
    X, y, t, _ = confounded(n=100)
    passed = {"X": X, "y": y, "treatment": t, **{k: v for k, v in change.items() if k in FIT}}
    with pytest.raises(ValueError, match=message):
        EvolvedFeatures(**{k: v for k, v in change.items() if k not in FIT}).fit(**passed)


FIT = ("X", "treatment", "instrument")


def test_few_rows_and_other_columns_are_refused():
    X, y, t, _ = confounded(n=100)
    with pytest.raises(ValueError, match="at least 30 rows, got 29"):
        EvolvedFeatures().fit(X[:29], y[:29], treatment=t[:29])
    features = EvolvedFeatures(**QUICK).fit(X, y, treatment=t)
    with pytest.raises(ValueError, match="features"):
        features.transform(X[:, :2])


def test_the_hidden_layer_of_shared_and_own_inputs():
    cohort = random_cohort(3, 2, generators(1, 2), torch.zeros(1, dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden(x, cohort, "tanh"), hidden(torch.stack([x, x]), cohort, "tanh"))
