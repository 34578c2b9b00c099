"""Ordinary training that looks like a broken contract, and is none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.doctor.diagnose import diagnose

from .cases import fine_tune, mlp, table, train


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def found(watching, run, cause):
    """Return the findings of one cause that are more than *info*."""
    with watching(1.0) as watched:
        run()
    assert watched.tap.fault is None
    return [f for f in diagnose(watched.record) if f.cause == cause and f.severity != "info"]


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
        written_by_hand,
        alternating_competitors,
        lambda: fine_tune(lambda layer: layer.requires_grad_(False), set_to_none=False, decay=0.0),
        lambda: fine_tune(lambda layer: layer.requires_grad_(False), set_to_none=True, freeze_at=7),
    ],
)
def test_parameters_that_follow_requires_grad(run, watching):
    assert found(watching, run, "requires_grad_in_vain") == []
