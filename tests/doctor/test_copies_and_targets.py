"""Copies of what is trained, and losses that are known not to measure progress."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from poise.doctor.diagnose import diagnose
from poise.doctor.tap.copies import are_alike, copies_of_trained


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def trained(*modules):
    return {id(p) for module in modules for p in module.parameters()}


def serious(watched):
    return [f.cause for f in diagnose(watched.record) if f.severity != "info"]


# ---- copies


def test_a_copy_is_known_and_an_independent_network_is_not():
    model, other = network(), network()
    target = copy.deepcopy(model)
    assert copies_of_trained([model, target, other], trained(model)) == [target]
    assert copies_of_trained([model, target, other], trained(model, target)) == []  # it is trained itself


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_weights_between_those_of_two_steps_are_a_copy(decay):
    torch.manual_seed(0)
    model = network()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p, slow in zip(model.parameters(), average.parameters(), strict=True):
            p.add_(0.3 * torch.randn_like(p) * p.std())
            slow.lerp_(p, 1 - decay)
    assert are_alike(model, average)
    assert not are_alike(model, network())


def test_a_copy_within_the_module_that_is_trained_is_no_orphan(watching):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()
            self.average = copy.deepcopy(self.model)
            self.forgotten = nn.Linear(6, 3)

        def forward(self, x):
            return self.model(x)

    task = Task()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    with watching() as watched:
        for _ in range(15):
            optimizer.zero_grad()
            task(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    (event,) = watched.record.events("orphans")
    assert [name.partition(".")[0] for name in event.payload["unoptimized"]] == ["forgotten", "forgotten"]


# ---- bootstrapped targets


def bootstrap(every=20, lr=1e-3, steps=120, evaluate_only=False):
    torch.manual_seed(0)
    q = network()
    target = copy.deepcopy(q)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=lr)
    for step in range(steps):
        if step % every == 0:
            target.load_state_dict(q.state_dict())
        s, following = torch.randn(32, 6), torch.randn(32, 6)
        with torch.no_grad():
            if evaluate_only:
                if step == 50:
                    target(following)
                goal = torch.ones(32)
            else:
                goal = 1.0 + 0.99 * target(following).amax(1)
        loss = (q(s)[:, 0] - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_targets_of_a_copy_are_bootstrapped(watching):
    with watching() as watched:
        bootstrap()
    (event,) = watched.record.events("bootstrapped")
    assert event.step <= 3
    assert serious(watched) == []


def test_a_copy_that_is_evaluated_now_and_then_makes_no_targets(watching):
    with watching() as watched:
        bootstrap(evaluate_only=True)
    assert watched.record.events("bootstrapped") == []


def test_weights_copied_to_a_target_network_are_no_resume_even_if_step_0_is_not_sampled(watching):
    with watching() as watched:
        watched.tap.state.sampler.sampling = False
        bootstrap(steps=30)
    (first,) = watched.record.events("first_step")
    assert watched.record["update_ratio"].steps[0] > 0
    assert first.payload["state_empty"]
    assert first.payload["loaded_share"] == 0.0
    assert serious(watched) == []


def test_targets_that_run_away_are_named(watching):
    with watching() as watched:
        bootstrap(
            every=1, lr=1e-2, steps=10
        )  # what is needed to see the kind; the loss itself takes longer to run away
    assert len(watched.record.events("bootstrapped")) == 1


# ---- policies


@pytest.mark.parametrize("act", [lambda z: Categorical(logits=z), lambda z: Normal(z, 1.0)])
def test_a_policy_gradient_is_recognised_and_its_loss_is_not_judged(act, watching):
    torch.manual_seed(0)
    policy = network()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    with watching() as watched:
        for episode in range(80):
            chosen = act(policy(torch.randn(10 + episode, 6)))
            actions = chosen.sample()
            returns = torch.randn(actions.shape)  # nothing to learn: the loss is noise around 0 that grows
            optimizer.zero_grad()
            (-chosen.log_prob(actions) * returns).sum().backward()
            optimizer.step()
    (event,) = watched.record.events("policy_gradient")
    assert event.step == 0
    assert serious(watched) == []


def test_the_likelihood_of_data_is_no_policy_gradient(watching):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching() as watched:
        for _ in range(5):
            latent = Normal(model(torch.randn(8, 6)), 1.0)
            latent.rsample()
            optimizer.zero_grad()
            (-latent.log_prob(torch.randn(8, 3)).mean()).backward()
            optimizer.step()
    assert watched.record.events("policy_gradient") == []
