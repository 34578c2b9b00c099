"""What the audit before the first step says of positions, shortcuts, factors before a norm and bounds on sub-layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.curvature import as_objective
from poise.nn import ScaledResidual
from poise.preflight import audit_init
from poise.preflight.signal_propagation.signal_propagation import depth_units, signal_propagation
from poise.preflight.signal_propagation.sublayer_bound import sublayer_bounds


def squares(model, x):
    return model(x).square().mean()


def passed(model, x):
    return signal_propagation(model, as_objective(squares), x, *depth_units(model, None))


def causes(model, x):
    return {f.cause: f for f in audit_init(model, x, squares, products=0).findings}


# --- positions


class Registers(nn.Module):
    """Token vectors of standard deviation 1 behind a few registers of another one."""

    def __init__(self, count, std, table=1.0, dim=64, time_first=False):
        super().__init__()
        self.embedding = nn.Embedding(50, dim)
        nn.init.normal_(self.embedding.weight, std=table)
        self.register = nn.Parameter(std * F.normalize(torch.randn(count, dim), dim=1) * math.sqrt(dim))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-12), nn.Linear(dim, 3)
        self.time_first = time_first

    def forward(self, tokens):
        x = torch.cat([self.register.expand(len(tokens), -1, -1), self.embedding(tokens)], 1)
        return self.head(self.norm(x.transpose(0, 1) if self.time_first else x))


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize(("count", "length"), [(1, 64), (4, 16)])
def test_small_registers_are_found_at_their_positions_and_embeddings_are_not_blamed(count, length, time_first):
    torch.manual_seed(0)
    model, tokens = Registers(count, 0.02, time_first=time_first), torch.randint(50, (8, length))
    (norm,) = passed(model, tokens).norms
    means = model.register.mean(1)
    stds = (model.register - means[:, None]).square().mean(1).sqrt()
    assert norm.by_position[:count] == pytest.approx((1 / stds).tolist(), rel=1e-3)
    assert norm.typical == pytest.approx(1, rel=0.1)
    found = causes(model, tokens)
    assert "small_residual_stream" not in found
    finding = found["small_positions"]
    assert finding.severity == "warning"
    assert finding.where == ("register", "norm")
    assert f"{count} of {count + length} positions" in finding.summary


def test_a_stream_that_is_small_everywhere_is_the_embeddings_and_registers_of_usual_size_are_nothing():
    torch.manual_seed(0)
    tokens = torch.randint(50, (8, 16))
    everywhere = causes(Registers(1, 0.02, table=0.02), tokens)
    assert "small_positions" not in everywhere
    assert everywhere["small_residual_stream"].remedies == ("scale_embedding",)
    assert not {"small_positions", "small_residual_stream"} & set(causes(Registers(2, 1.0), tokens))


def test_padding_with_zeros_in_some_examples_is_not_a_small_position():
    norm = nn.LayerNorm(16)
    x = torch.randn(8, 5, 16)
    x[:3, 4] = 0
    found = passed(nn.Sequential(norm, nn.Linear(16, 2)), x).norms[0]
    assert max(found.by_position) < 2
    assert found.degenerate == pytest.approx(3 / 40)


# --- shortcuts


class Block(nn.Module):
    def __init__(self, rule, dim=16):
        super().__init__()
        self.linear, self.rule = nn.Linear(dim, dim, bias=False), rule
        nn.init.normal_(self.linear.weight, std=0.01 / math.sqrt(dim))

    def forward(self, x):
        return self.rule(x, torch.tanh(self.linear(x)))


RULES = {
    "factor first": lambda x, f: 0.9 * x + f,
    "branch first": lambda x, f: f + x * 0.9,
    "tensor": lambda x, f: x * torch.tensor(0.9) + f,
    "division": lambda x, f: x / (1 / 0.9) + f,
    "alpha": lambda x, f: torch.add(f, x, alpha=0.9),
    "function": lambda x, f: torch.mul(x, 0.9).add(f),
    "both": lambda x, f: 0.9 * x + 0.1 * f,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_factor_on_the_shortcut_is_found_in_every_way_to_write_it(rule):
    torch.manual_seed(0)
    depth = 30
    model = nn.Sequential(*(Block(RULES[rule]) for _ in range(depth)))
    x = torch.randn(8, 16)
    assert [r.gain for r in passed(model, x).residuals] == pytest.approx([0.9] * depth, rel=1e-6)
    finding = causes(model, x)["shortcut_gain"]
    assert finding.severity == "warning"
    assert finding.evidence[0].value == pytest.approx(0.9**depth, rel=1e-5)


def test_shortcuts_without_a_factor_or_with_one_on_the_branch_only_are_none():
    x = torch.randn(8, 16)
    for rule in (lambda x, f: x + f, lambda x, f: x + 0.1 * f, lambda x, f: torch.add(x, f, alpha=0.1)):
        model = nn.Sequential(*(Block(rule) for _ in range(30)))
        assert {r.gain for r in passed(model, x).residuals} == {1.0}
        assert "shortcut_gain" not in causes(model, x)


def test_a_factor_on_shortcut_and_branch_that_keeps_gradients_is_only_worth_knowing():
    torch.manual_seed(0)
    root = math.sqrt(0.5)
    model = nn.Sequential(*(Block(lambda x, f: root * x + root * f, dim=64) for _ in range(12)))
    for block in model:
        nn.init.orthogonal_(block.linear.weight)
    assert causes(model, 0.01 * torch.randn(32, 64))["shortcut_gain"].severity == "info"


# --- factors before a norm


class OwnBatchNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.gain * (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()


class Scaled(nn.Module):
    def __init__(self, norm, factor=0.2, dim=8):
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, dim), norm
        self.factor = factor

    def forward(self, x):
        return x + self.norm(self.factor * self.linear(x))


@pytest.mark.parametrize(
    "norm",
    [OwnBatchNorm(8), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8)],
    ids=lambda n: type(n).__name__,
)
@pytest.mark.parametrize("learned", [False, True])
def test_a_factor_in_front_of_a_norm_is_found(norm, learned):
    torch.manual_seed(0)
    model = Scaled(norm, nn.Parameter(torch.tensor(0.2)) if learned else 0.2)
    finding = causes(model, torch.randn(64, 8))["cancelled_factor"]
    assert finding.where == ("norm",)
    assert "0.2" in finding.summary


@pytest.mark.parametrize(
    "model",
    [
        Scaled(nn.BatchNorm1d(8).eval()),  # divides by what it remembers
        Scaled(nn.LayerNorm(8), factor=1e-4),  # the variance is far below epsilon
        Scaled(nn.Identity()),
        Scaled(nn.Tanh()),
        Scaled(nn.LayerNorm(8), factor=1.0),
        nn.Sequential(ScaledResidual(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), 0.2), nn.Linear(8, 2)),
    ],
    ids=["evaluation", "epsilon", "identity", "tanh", "one", "behind the norm"],
)
def test_a_factor_that_has_an_effect_is_no_finding(model):
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "cancelled_factor" not in causes(model, torch.randn(64, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- bounds


class FeedForward(nn.Module):
    def __init__(self, d, e, std, gain=1.0, factor=1.0):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(d), nn.Linear(d, e), nn.Linear(e, d)
        self.factor = factor
        for layer in (self.one, self.two):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x):
        return x + self.factor * self.two(torch.relu(self.one(self.norm(x))))


@pytest.mark.parametrize(("std", "stream", "gain", "factor"), [(0.05, 1.0, 1, 1), (0.1, 0.1, 2, 1), (0.1, 1.0, 1, 0.1)])
def test_the_bound_of_a_sub_layer_is_the_formula_and_bounds_the_jacobian(std, stream, gain, factor):
    torch.manual_seed(0)
    d, e = 64, 256
    model = nn.Sequential(FeedForward(d, e, std, gain, factor), FeedForward(d, e, std, gain, factor)).double()
    x = stream * torch.randn(16, d, dtype=torch.float64)
    first, _ = sublayer_bounds(model, passed(model, x))
    expected = gain * factor * std**2 * (math.sqrt(d) + math.sqrt(e)) ** 2
    assert first.branch == pytest.approx(expected, rel=0.03)  # the weights' own standard deviation is that near
    assert first.bound == pytest.approx(1 + first.branch * first.amplification, rel=1e-12)
    norms = [torch.linalg.matrix_norm(torch.autograd.functional.jacobian(model[0], row), 2).item() for row in x[:4]]
    assert max(norms) <= 1.1 * first.bound


def test_large_sub_layers_are_found_and_the_usual_initialisation_is_not():
    torch.manual_seed(0)
    x = torch.randn(16, 64)
    large = causes(nn.Sequential(*(FeedForward(64, 256, 0.2) for _ in range(3))), x)["large_sublayer"]
    assert (large.severity, large.where) == ("info", ("0", "1", "2"))
    usual = nn.Sequential(*(FeedForward(64, 256, 0.02) for _ in range(3)))
    for block in usual:
        block.one.reset_parameters()
        block.two.reset_parameters()
    assert "large_sublayer" not in causes(usual, x)


def test_attention_is_not_taken_for_a_feed_forward_sub_layer():
    layer = nn.TransformerEncoderLayer(16, 2, 64, norm_first=True, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    found = sublayer_bounds(model, passed(model, torch.randn(4, 5, 16)))
    assert len(found) == 2
