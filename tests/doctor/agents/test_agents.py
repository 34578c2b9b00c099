"""Runs of reinforcement learning: the healthy ones are silent, and faults are named by what is comparable in them."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.diagnose import diagnose
from poise.doctor.tap.environments import is_environment
from poise.doctor.tap.policy_terms import policy_terms

from .runs import FAULTY, HEALTHY, Cart, Point


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    torch.manual_seed(0)


def serious(watched):
    return [f.cause for f in diagnose(watched.record) if f.severity != "info"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_agent_is_silent(name, watching):
    if name == "gymnasium":
        pytest.importorskip("gymnasium")
    with watching(overhead=0.1) as watched:
        HEALTHY[name]()
    assert watched.tap.fault is None
    assert serious(watched) == []


@pytest.mark.parametrize("name", FAULTY)
def test_the_fault_of_an_agent_is_named_first(name, watching):
    run, cause = FAULTY[name]
    with watching(overhead=0.1) as watched:
        run()
    assert watched.tap.fault is None
    assert serious(watched)[:1] == [cause]


# ---- environments


def test_what_is_reset_and_stepped_is_an_environment():
    class Stopping:  # stops early: it is reset and stepped as well, but says one thing only
        def reset(self):
            self.bad = 0

        def step(self, loss):
            self.bad += 1
            return self.bad > 3

    assert is_environment(Cart())
    assert is_environment(Point())
    assert not is_environment(Stopping())
    assert not is_environment(Cart)
    model = nn.Linear(2, 2)
    assert not is_environment(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("moves", [True, False])
def test_an_environment_is_noted_if_it_moves_between_updates(moves, watching):
    env, model = Cart(), nn.Linear(4, 1)
    env.reset()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching() as watched:
        for _ in range(10):
            if moves:
                env.step(1)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    assert len(watched.record.events("environment")) == moves


# ---- log-probabilities in a loss

X, CLASSES = torch.randn(16, 4), torch.arange(16) % 3


def picked(model):
    return F.log_softmax(model(X), 1)[torch.arange(16), CLASSES]


SIGNED, POSITIVE = torch.linspace(-1, 1, 16), torch.linspace(0.1, 1, 16)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda m: -(picked(m) * SIGNED).mean(), True),
        (lambda m: (F.cross_entropy(m(X), CLASSES, reduction="none") * SIGNED).sum() / 16 + 0.1, True),
        (lambda m: sum(-a * b for a, b in zip(picked(m), SIGNED, strict=True)), True),
        (
            lambda m: -torch.min((picked(m) + 1).exp() * SIGNED, (picked(m) + 1).exp().clamp(0.8, 1.2) * SIGNED).mean(),
            True,
        ),
        (lambda m: -(picked(m) * POSITIVE).mean(), False),  # weights of examples
        (lambda m: F.cross_entropy(m(X), CLASSES), False),
        (lambda m: 0.7 * F.cross_entropy(m(X), CLASSES) - 0.1 * F.cross_entropy(m(X), CLASSES), False),
        (lambda m: (m(X) - SIGNED[:, None]).square().mean(), False),
        (lambda m: -(F.one_hot(CLASSES, 3) * F.log_softmax(m(X), 1)).sum(1).mean(), False),
    ],
)
def test_factors_of_both_signs_are_those_of_a_policy_gradient(loss, expected):
    terms = policy_terms(loss(nn.Linear(4, 3)))
    assert (terms is not None and terms.signed and terms.picked) == expected


def test_the_entropy_of_a_policy_is_that_of_its_distributions():
    model = nn.Linear(4, 3)
    p = F.softmax(model(X), 1)
    expected = float(-(p * p.log()).sum(1).mean() / torch.tensor(3.0).log())
    terms = policy_terms(-(picked(model) * SIGNED).mean())
    assert float(terms.entropy) == pytest.approx(expected, rel=1e-5)


# ---- gradients of targets


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_target_of_the_same_network_must_have_no_gradient(cut, by_hand, watching):
    q = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(q.parameters(), lr=1e-3)
    with watching() as watched:
        for _ in range(4):
            with torch.set_grad_enabled(not cut):
                goal = torch.ones(16) + 0.9 * q(torch.randn(16, 4)).max(1).values
            value = q(torch.randn(16, 4)).gather(1, CLASSES.clamp_max(1)[:, None])[:, 0]
            optimizer.zero_grad()
            (((value - goal) ** 2).mean() if by_hand else F.mse_loss(value, goal)).backward()
            optimizer.step()
    assert len(watched.record.events("target_with_gradient")) == (not cut)


def test_two_outputs_of_one_network_may_be_compared(watching):
    twin = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    with watching() as watched:
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(twin(torch.randn(16, 4)), twin(torch.randn(16, 4))).backward()
            optimizer.step()
    assert watched.record.events("target_with_gradient") == []


def test_a_tensor_that_belongs_to_no_module_is_trained_by_right(watching):
    model, scale = nn.Linear(4, 1), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([*model.parameters(), scale], lr=1e-3)
    with watching() as watched:
        for _ in range(30):
            optimizer.zero_grad()
            ((model(X) * scale.exp() - X[:, :1]) ** 2).mean().backward()
            optimizer.step()
    assert "orphan_parameters" not in serious(watched)
