"""Ordinary training that looks like a broken contract, and is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.diagnose import diagnose

from .cases import (
    Computed,
    Masked,
    attended,
    cosine,
    fine_tune,
    hide,
    mlp,
    on_schedule,
    one_cycle,
    table,
    train,
    warmed_up_cosine,
    with_empty_sets,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def found(watching, run, *causes):
    """Return the findings of these causes that are more than *info*."""
    with watching(1.0) as watched:
        run()
    assert watched.tap.fault is None
    return [f for f in diagnose(watched.record) if f.cause in causes and f.severity != "info"]


# ---- requires_grad


class Backbone(nn.Module):
    """Keeps the setting as an attribute of its own, and follows it."""

    def __init__(self, requires_grad):
        super().__init__()
        self.requires_grad = requires_grad
        self.layer, self.adapter = nn.Linear(4, 8), nn.Linear(8, 8)
        self.layer.requires_grad_(requires_grad)

    def forward(self, x):
        return self.adapter(self.layer(x))


def with_backbone(requires_grad):
    train(nn.Sequential(Backbone(requires_grad), nn.Tanh(), nn.Linear(8, 1)), lambda m: m(table()).square().mean())


def left_out_of_the_optimizer():
    model = mlp(4, 8, 1)
    model[0].requires_grad = False
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.01)
    train(model, lambda m: m(table()).square().mean(), optimizer=optimizer)


def written_by_hand():
    """A search without backward passes: frozen weights with gradients that the script makes."""
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, lambda m: m(table()).square().mean(), 4, optimizer)
    model.requires_grad_(False)
    for _ in range(10):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()


def alternating_competitors():
    """A critic that is frozen while the generator learns."""
    generator, critic = mlp(4, 8, 2), mlp(2, 8, 1)
    ours = torch.optim.Adam(generator.parameters(), lr=1e-3, weight_decay=0.1)
    theirs = torch.optim.Adam(critic.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(14):
        critic.requires_grad_(True)
        theirs.zero_grad(set_to_none=False)
        (critic(generator(table()).detach()).mean() - critic(torch.randn(16, 2)).mean()).backward()
        theirs.step()
        critic.requires_grad_(False)
        ours.zero_grad(set_to_none=False)
        (-critic(generator(table())).mean()).backward()
        ours.step()


@pytest.mark.parametrize(
    "run",
    [
        lambda: with_backbone(True),
        lambda: with_backbone(False),
        left_out_of_the_optimizer,
        written_by_hand,
        alternating_competitors,
        lambda: fine_tune(lambda layer: layer.requires_grad_(False), set_to_none=False, decay=0.0),
        lambda: fine_tune(lambda layer: layer.requires_grad_(False), set_to_none=True, freeze_at=7),
    ],
)
def test_parameters_that_follow_requires_grad(run, watching):
    assert found(watching, run, "requires_grad_in_vain") == []


# ---- schedules


def resumed():
    """A second part of a run, with the schedule of the first."""
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = cosine(optimizer, 20)
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": 10})
    for step in range(20):
        optimizer.zero_grad()
        model(table()).square().mean().backward()
        optimizer.step()
        if step % 10 == 9:
            schedule.step()


def two_losses():
    """Two backward passes a step, and a schedule for as many steps as there are."""
    on_schedule(lambda optimizer, backwards: cosine(optimizer, backwards // 2), False, micro=2)


@pytest.mark.parametrize(
    "run",
    [
        lambda: on_schedule(lambda optimizer, steps: cosine(optimizer, 4), True),  # for epochs, with epochs
        lambda: on_schedule(lambda optimizer, steps: cosine(optimizer, 100), True),  # stopped early
        lambda: on_schedule(lambda optimizer, steps: one_cycle(optimizer, 2 * steps), False),  # stopped half-way
        lambda: on_schedule(lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 2), True),
        lambda: on_schedule(warmed_up_cosine, False),
        two_losses,
        resumed,
    ],
)
def test_schedules_that_keep_their_pace(run, watching):
    assert found(watching, run, "schedule_steps_missing", "schedule_per_batch") == []


# ---- modes


def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def trained(between, steps=24, every=12, model=None):
    """Train, and call ``between(model)`` every so many steps."""
    model = model or dropping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(table()).square().mean().backward()
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                between(model)


def evaluated(model):
    model.eval()
    model(table())
    model.train()


def sampled_models(model):
    """Dropout as a sample of models: many passes of one batch."""
    x = table()
    torch.stack([model(x) for _ in range(8)])


def only_dropout_on(model):
    model.eval()
    model[2].train()
    model(table())
    model.train()


def batch_statistics(model):
    model[1].reset_running_stats()
    model[1].momentum = None
    for _ in range(4):
        model(table())
    model[1].momentum = 0.1


def pseudo_labels():
    """A pass without gradients belongs to every step."""
    trained(lambda model: model(table()), every=1)


def self_conditioning():
    model = dropping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(24):
        x = table()
        if step % 2:
            with torch.no_grad():
                x = x + model(x)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def fixed_noise_of_a_gan():
    generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    critic, noise = mlp(2, 8, 1), torch.randn(16, 4)
    ours = torch.optim.Adam(generator.parameters(), lr=1e-3)
    theirs = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for step in range(24):
        theirs.zero_grad()
        (critic(generator(table()).detach()).mean() - critic(torch.randn(16, 2)).mean()).backward()
        theirs.step()
        ours.zero_grad()
        (-critic(generator(table())).mean()).backward()
        ours.step()
        if step % 12 == 11:
            with torch.no_grad():
                generator(noise)


@pytest.mark.parametrize(
    "run",
    [
        lambda: trained(evaluated),
        lambda: trained(sampled_models),
        lambda: trained(only_dropout_on),
        lambda: trained(batch_statistics),
        lambda: trained(lambda model: model(table()), model=mlp(4, 8, 1)),
        pseudo_labels,
        self_conditioning,
        fixed_noise_of_a_gan,
    ],
)
def test_passes_without_gradients_that_are_no_evaluation_in_training_mode(run, watching):
    assert found(watching, run, "mode_error") == []


# ---- the dimension of the batch


def both_ways():
    """Pairs of views: each is to find its partner among the rows, and among the columns."""

    def loss(m):
        likeness = m(table()) @ m(table()).T
        return sum(F.kl_div(F.log_softmax(likeness, dim=dim), torch.eye(16)) for dim in (0, 1))

    train(mlp(4, 8, 8), loss)


def test_a_softmax_over_pairs_is_none_over_a_batch(watching):
    assert found(watching, both_ways, "softmax_over_batch") == []


class Mixture(nn.Module):
    """Weights of as many parts as there are examples, and columns of weights of length one."""

    def __init__(self):
        super().__init__()
        self.parts, self.mix = nn.Parameter(torch.randn(16, 4, 8)), nn.Parameter(torch.zeros(16, 3))
        self.head = nn.Parameter(torch.randn(16, 3))
        self.body = nn.Linear(8, 16)

    def forward(self, x):
        mix = F.softmax(self.mix * 2, dim=0)[:, 0]
        h = self.body(torch.einsum("k,kio,bi->bo", mix, self.parts, x))
        return h @ F.normalize(self.head, dim=0)


def bag(h):
    """Attention over the members of one set."""
    return (F.softmax(h[:, :1], dim=0) * h).sum(0, keepdim=True)


def time_first(h):
    """Attention over time, where that comes first."""
    return F.softmax(h, dim=0) * h


def squared(model, x):
    train(model, lambda m: m(x).square().mean())


@pytest.mark.parametrize(
    "run",
    [
        lambda: squared(Mixture(), table()),
        lambda: squared(Computed(bag), table()),
        lambda: squared(Computed(lambda h: F.softmax(h[:, :1], dim=0) * h), table()),  # a weight for each of a set
        lambda: squared(Computed(lambda h: F.softmax(h @ h.T, dim=0) @ h), table()),  # nodes of a graph
        lambda: squared(Computed(time_first), torch.randn(7, 16, 4)),
        lambda: squared(Computed(attended(-1)), torch.randn(16, 7, 4)),
        lambda: squared(Computed(nn.LayerNorm([7, 8])), torch.randn(16, 7, 4)),
        lambda: squared(Computed(nn.BatchNorm1d(8)), table()),
    ],
)
def test_what_runs_over_another_first_dimension(run, watching):
    assert found(watching, run, "softmax_over_batch", "norm_over_batch") == []


# ---- masks


def guarded(scores, seen):
    return torch.nan_to_num(hide(scores, seen))


def finite(scores, seen):
    return scores.masked_fill(~seen, -1e9).softmax(-1)


def broken_elsewhere(scores, seen):
    return hide(scores, seen | (seen.sum(-1, keepdim=True) == 0)) / seen.any(-1, keepdim=True)


@pytest.mark.parametrize("mask", [guarded, finite, broken_elsewhere])
def test_empty_sets_that_a_softmax_bears(mask, watching):
    assert found(watching, lambda: with_empty_sets(Masked(mask), True), "fully_masked_softmax") == []


# ---- what changes parameters between steps


def clipped_critic():
    model = mlp(4, 8, 1)

    def loss(m):
        for p in m.parameters():
            p.data.clamp_(-0.01, 0.01)
        return -m(table()).mean()

    train(model, loss, 40, torch.optim.RMSprop(model.parameters(), lr=0.1))


def unit_rows():
    model = mlp(4, 8, 1)

    def loss(m):
        m[0].weight.data.copy_(F.normalize(m[0].weight.data, dim=1))
        return m(table()).square().mean()

    train(model, loss, 40)


def averaged_for_evaluation():
    """Weights are exchanged for their average, and put back."""
    model = mlp(4, 8, 1)
    average = [p.detach().clone() for p in model.parameters()]

    def loss(m):
        kept = [p.detach().clone() for p in m.parameters()]
        for p, slow, old in zip(m.parameters(), average, kept, strict=True):
            slow.lerp_(old, 0.1)
            p.data.copy_(slow)
        with torch.no_grad():
            m(table())
        for p, old in zip(m.parameters(), kept, strict=True):
            p.data.copy_(old)
        return m(table()).square().mean()

    train(model, loss, 40)


def inner_loops():
    """First-order MAML: one inner step for each task, from the same weights."""
    model = mlp(4, 8, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    outer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = []
        for _ in range(40):
            model.load_state_dict(start)
            train(model, lambda m: m(table()).square().mean(), 1, inner)
            gradients.append([p.grad.clone() for p in model.parameters()])
        model.load_state_dict(start)
        for p, *parts in zip(model.parameters(), *gradients, strict=True):
            p.grad = torch.stack(parts).mean(0)
        outer.step()


def warmed_up_from_zero():
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, step - 7) / 10)
    for _ in range(40):
        train(model, lambda m: m(table()).square().mean(), 1, optimizer)
        schedule.step()


@pytest.mark.parametrize("run", [clipped_critic, unit_rows, averaged_for_evaluation, inner_loops, warmed_up_from_zero])
def test_changes_between_steps_that_undo_no_update(run, watching):
    assert found(watching, run, "updates_undone") == []
