"""What a guess would lose, and whether targets have to do with their inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.diagnose import diagnose
from poise.doctor.probes.guess import loss_of_a_constant
from poise.doctor.probes.relation import _distinct, relation_of
from poise.doctor.tap.loss_node import loss_node


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- what a guess would lose


def guess(loss):
    return float(loss_of_a_constant(loss_node(loss)))


def test_a_guess_loses_the_variance_of_each_output():
    model, y = nn.Linear(3, 2), torch.randn(64, 2) * torch.tensor([1.0, 3.0]) + 5
    assert guess(F.mse_loss(model(torch.randn(64, 3)), y)) == pytest.approx(float(y.var(0).mean()), rel=1e-5)


def test_a_guess_loses_the_entropy_of_uniform_labels():
    y = torch.arange(400) % 4
    assert guess(F.cross_entropy(nn.Linear(3, 4)(torch.randn(400, 3)), y)) == pytest.approx(math.log(4), rel=1e-3)


@pytest.mark.parametrize("by_logits", [True, False])
def test_a_guess_loses_the_entropy_of_a_coin(by_logits):
    y = (torch.arange(1000) % 4 == 0).float()[:, None]
    z = nn.Linear(3, 1)(torch.randn(1000, 3))
    loss = F.binary_cross_entropy_with_logits(z, y) if by_logits else F.binary_cross_entropy(z.sigmoid(), y)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert guess(loss) == pytest.approx(expected, abs=1e-3)


def test_ignored_labels_are_left_out():
    y = torch.tensor([0, 1, -100, 1])
    node = loss_node(F.cross_entropy(nn.Linear(3, 2)(torch.randn(4, 3)), y))
    assert node.target.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, x, y: F.mse_loss(m(x), y) + 1e-3 * sum(p.square().sum() for p in m.parameters()),
        lambda m, x, y: F.mse_loss(m(x), y, reduction="sum"),
        lambda m, x, y: (m(x) - y).abs().mean(),
    ],
)
def test_a_loss_that_is_more_than_one_function_is_not_judged(loss):
    assert loss_node(loss(nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1))) is None


# ---- relation of targets to inputs


@pytest.mark.parametrize(
    "truth", [lambda x: x[:, :1], lambda x: x[:, :1].abs(), lambda x: (x[:, :1] * x[:, 1:2] > 0).float()]
)
def test_targets_that_follow_from_inputs_are_related(truth):
    x = torch.randn(400, 4)
    y = truth(x)
    assert relation_of(x, y) > 6
    assert relation_of(x, y[torch.randperm(400)]) < 3.5


def test_the_relation_has_the_spread_of_chance_if_there_is_none():
    values = torch.tensor([relation_of(torch.randn(100, 5), torch.randn(100, 1)) for _ in range(60)])
    assert abs(values.mean()) < 1.0  # the larger of two, so a little above 0
    assert 0.7 < values.std() < 2.0


def test_units_do_not_matter():
    x, y = torch.randn(200, 4), torch.randn(200, 1)
    assert relation_of(x, y) == pytest.approx(relation_of(x * 1000 + 7, 3 * y - 1), abs=1e-3)


def test_an_example_that_comes_twice_counts_once():
    x = torch.randn(10, 3)
    twice = torch.cat([x, x])
    kept, y = _distinct(twice, torch.arange(20.0)[:, None])
    assert len(kept) == 10
    assert sorted(y[:, 0].tolist()) == list(range(10))


def train(shuffled, kind, watching, steps=160, lr=1e-3):
    x, w = torch.randn(800, 10), torch.randn(10, 3)
    y = {"classes": (x @ w).argmax(1), "numbers": x @ w[:, :1], "binary": (x @ w[:, :1] > 0).float()}[kind]
    y = y[torch.randperm(800)] if shuffled else y
    loss = {"classes": F.cross_entropy, "numbers": F.mse_loss, "binary": F.binary_cross_entropy_with_logits}[kind]
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3 if kind == "classes" else 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with watching() as watched:
        for _ in range(steps):
            rows = torch.randint(800, (32,))
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return [f.cause for f in diagnose(watched.record) if f.severity != "info"]


@pytest.mark.parametrize("kind", ["classes", "numbers", "binary"])
def test_shuffled_targets_are_told_from_those_that_belong_to_their_inputs(kind, watching):
    assert train(True, kind, watching) == ["label_problem"]
    assert "label_problem" not in train(False, kind, watching)


def test_a_rate_that_is_too_small_is_no_problem_of_the_labels(watching):
    assert train(False, "classes", watching, lr=1e-7) == ["lr_too_small"]
