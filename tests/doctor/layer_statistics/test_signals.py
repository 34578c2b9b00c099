"""The signals that the statistical causes read, against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal


def steps(model, loss, count=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(count):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return model


def last(watched, signal):
    return watched[signal].values[-1]


def vectors(kind):
    """16 vectors: of 8 axes each twice, all the same, or two opposite halves."""
    axes = torch.eye(8).repeat(2, 1)
    return {"axes": axes, "one": axes[:1].expand(16, 8), "opposite": torch.cat([axes[:1], -axes[:1]]).repeat(8, 1)}[
        kind
    ]


@pytest.mark.parametrize(("kind", "spread"), [("axes", math.sqrt(7 / 8)), ("one", 0.0), ("opposite", 1.0)])
@pytest.mark.parametrize("how", ["normalize", "module", "triplet"])
def test_spread_of_embeddings(kind, spread, how, watching):
    x = 3 * vectors(kind)
    model = nn.Linear(8, 8, bias=False)
    nn.init.eye_(model.weight)
    losses = {
        "normalize": lambda m: F.normalize(m(x), dim=1).sum(),
        "module": lambda m: nn.CosineSimilarity(dim=1)(m(x), torch.ones(16, 8)).sum(),
        "triplet": lambda m: F.triplet_margin_loss(m(x), x + 1, x - 1),
    }
    with watching() as watched:
        steps(model, losses[how])
    assert last(watched, "embedding_spread") == pytest.approx(spread, abs=1e-3)


@pytest.mark.parametrize("x", [torch.randn(16, 8, 4), torch.randn(4, 8), torch.randn(16, 2)])
def test_what_is_no_batch_of_embeddings_is_not_measured(x, watching):
    with watching() as watched:
        steps(nn.Linear(x.shape[-1], x.shape[-1]), lambda m: F.normalize(m(x), dim=-1).sum())
    assert "embedding_spread" not in watched.record


@pytest.mark.parametrize("how", ["log_prob", "gaussian_nll"])
def test_learned_deviation_and_residuals_in_its_units(how, watching):
    model = nn.Module()
    model.log_std = nn.Parameter(torch.tensor([2.0, 8.0]).log())
    residual = torch.tensor([4.0, 8.0])

    def loss(m):
        std = m.log_std.exp()
        if how == "log_prob":
            return -Normal(torch.zeros(2), std).log_prob(residual).sum()
        return F.gaussian_nll_loss(torch.zeros(2), residual, std**2)

    with watching() as watched:
        steps(model, loss)
    assert last(watched, "learned_std") == pytest.approx(4.0, rel=1e-5)
    assert last(watched, "standard_residual") == pytest.approx(math.sqrt((2**2 + 1**2) / 2), rel=1e-5)


def test_a_deviation_that_is_not_learned_is_not_measured(watching):
    x = torch.randn(8, 1)
    with watching() as watched:
        steps(nn.Linear(1, 1), lambda m: -Normal(m(x), 1.0).log_prob(x).sum())
    assert "learned_std" not in watched.record


class Sampled(nn.Module):
    """Latent variables with given log variances."""

    def __init__(self, log_variance, factor=0.5):
        super().__init__()
        self.mean, self.factor = nn.Linear(3, len(log_variance)), factor
        self.log_variance = nn.Parameter(torch.tensor(log_variance))

    def forward(self, x):
        mean, log_variance = self.mean(x), self.log_variance.expand(len(x), -1)
        std = torch.exp(log_variance) if self.factor is None else torch.exp(self.factor * log_variance)
        return mean + std * torch.randn_like(std)


def test_share_of_active_latent_variables(watching):
    x = torch.randn(16, 3)
    with watching() as watched:
        steps(Sampled([0.0, -2.0, 0.0, 0.01]), lambda m: m(x).square().mean())
    assert last(watched, "latent_active") == 0.25


def test_noise_of_another_form_is_no_latent_variable(watching):
    x = torch.randn(16, 3)
    with watching() as watched:
        steps(Sampled([0.0, -2.0], factor=None), lambda m: m(x).square().mean())
        steps(nn.Linear(3, 3), lambda m: (m(x) + 0.1 * torch.randn(16, 3)).square().mean())
    assert "latent_active" not in watched.record


@pytest.mark.parametrize(
    ("norm", "shape", "values"),
    [(nn.BatchNorm1d, (6, 4), 6), (nn.BatchNorm1d, (2, 4, 5), 10), (nn.BatchNorm2d, (2, 4, 3, 3), 18)],
)
def test_values_of_a_batch_norm(norm, shape, values, watching):
    x = torch.randn(shape)
    with watching() as watched:
        steps(nn.Sequential(norm(4)), lambda m: m(x).square().sum())
    assert watched.record.by_layer("bn_values")["0"].values[-1] == values


def test_a_batch_norm_in_evaluation_takes_no_statistics(watching):
    x = torch.randn(6, 4)
    with watching() as watched:
        steps(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), lambda m: m(x).square().sum())
    assert watched.record.by_layer("bn_values") == {}


@pytest.mark.parametrize(
    ("activation", "share"), [(nn.Tanh(), 0.5), (nn.Sigmoid(), 0.25), (nn.Hardtanh(), 0.75), (nn.Hardsigmoid(), 0.5)]
)
def test_saturation_of_hidden_units_and_not_of_outputs(activation, share, watching):
    # tanh exceeds 0.97 from 2.1 on, a sigmoid from 3.5, their piecewise linear forms from 0.97 and 2.8.
    x = torch.tensor([[0.5, 1.0, 3.0, 9.0]])
    model = nn.Sequential(nn.Identity(), activation, nn.Linear(4, 1), nn.Sigmoid())
    with watching() as watched:
        steps(model, lambda m: m(x).sum())
    saturated = watched.record.by_layer("saturated")
    assert list(saturated) == ["1"]
    assert saturated["1"].values[-1] == pytest.approx(share)


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.branch, self.norm, self.kind = nn.Sequential(nn.Linear(4, 4)), nn.LayerNorm(4), kind

    def forward(self, x):
        if self.kind == "post":
            return self.norm(x + self.branch(x))
        return x + self.branch(self.norm(x)) if self.kind == "pre" else self.branch(self.norm(x)).relu()


@pytest.mark.parametrize(("kind", "residual", "post"), [("pre", 5, 0), ("post", 5, 5), ("plain", 0, 0)])
def test_blocks_their_sums_and_norms(kind, residual, post, watching):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*[Block(kind) for _ in range(5)]), nn.Linear(4, 1))
    x = torch.randn(8, 4)
    with watching() as watched:
        steps(model, lambda m: m(x).sum())
    (event,) = watched.record.events("blocks")
    assert event.payload["names"] == [f"1.{i}" for i in range(5)]
    assert (event.payload["residual"], event.payload["post_norm"]) == (residual, post)


@pytest.mark.parametrize("competes", [True, False])
def test_a_discriminator_is_told_from_a_classifier_of_pairs(competes, watching):
    judge, other = nn.Linear(2, 1), nn.Linear(2, 2)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (judge, other))
    loss, one, zero = F.binary_cross_entropy_with_logits, torch.ones(8, 1), torch.zeros(8, 1)
    with watching() as watched:
        for _ in range(6):
            ours.zero_grad()
            fake = other(torch.randn(8, 2))
            (loss(judge(torch.randn(8, 2)), one) + loss(judge(fake.detach()), zero)).backward()
            ours.step()
            theirs.zero_grad()
            (loss(judge(fake), one) if competes else fake.square().sum()).backward()
            theirs.step()
    assert [event.payload["timeline"] for event in watched.record.events("adversarial")] == ([""] if competes else [])
    assert ("opponent_grad_norm" in watched.record) == competes
    if competes:
        generator = watched.record["opt1/grad_norm"]
        seen = watched.record["opponent_grad_norm"]
        assert set(seen.values) <= set(generator.values)


def test_entropy_of_the_median_head(watching):
    # Three heads: one looks at one key, two spread evenly.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, q, k):
            return F.scaled_dot_product_attention(q * self.scale, k, k)

    q = torch.zeros(1, 3, 4, 2)
    q[:, 0] = 100.0
    k = torch.randn(1, 3, 4, 2)
    with watching() as watched:
        steps(Model(), lambda m: m(q, k).sum())
    (median,) = watched.record.by_layer("attention_entropy_median").values()
    (lowest,) = watched.record.by_layer("attention_entropy").values()
    assert median.values[-1] == pytest.approx(1.0)
    assert lowest.values[-1] < 0.5
