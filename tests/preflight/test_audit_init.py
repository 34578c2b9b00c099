import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.curvature import as_objective
from poise.nn import LayerNormGRU, LayerNormLSTM, LayerNormRNN, StableResNetMLP
from poise.preflight.curvature_limit.usable_lr import few_products, usable_lr, warm_up
from poise.preflight.init_audit import audit_init
from poise.preflight.signal_propagation.depth_growth import depth_growth, failing_depths
from poise.preflight.signal_propagation.hidden_state_gain import hidden_state_gain
from poise.preflight.signal_propagation.jacobian_gain import Point, jacobian_gain
from poise.preflight.signal_propagation.norm_amplification import norm_input
from poise.preflight.signal_propagation.residual_stream import residual_sum
from poise.preflight.signal_propagation.signal_propagation import depth_units, signal_propagation
from poise.report import Report


def passed(model, batch, loss=nn.CrossEntropyLoss()):  # noqa: B008
    units, are_blocks = depth_units(model, None)
    return signal_propagation(model, as_objective(loss), batch, units, are_blocks)


def he_mlp(depth, width):
    layers = [nn.Linear(width, width) for _ in range(depth)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def digits_like(n=128, features=64, classes=10):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, features, generator=generator), torch.randint(classes, (n,), generator=generator)


class TinyTransformer(nn.Module):
    """Pre-norm, one head, with embeddings of a known standard deviation and queries of a known size."""

    def __init__(self, std=0.02, query=None, blocks=3, width=16):
        super().__init__()
        self.tokens = nn.Embedding(20, width)
        nn.init.normal_(self.tokens.weight, std=std)
        self.blocks = nn.ModuleList(Layer(width, query) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20)

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, width, query):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.3)
        if query is not None:
            with torch.no_grad():
                self.q.weight.copy_(query * torch.eye(width))
                self.k.weight.copy_(torch.eye(width))

    def forward(self, x):
        h = self.norm1(x)
        mixed = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True)
        x = x + self.drop(self.out(mixed))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


def tokens(batch=2, time=8):
    ids = torch.randint(20, (batch, time), generator=torch.Generator().manual_seed(1))
    return ids, ids.roll(-1, 1)


# --- depth -------------------------------------------------------------------------------------------------------


def test_he_initialised_relu_mlp_neither_grows_nor_decays():
    torch.manual_seed(0)
    slopes = []
    for _ in range(3):
        model = he_mlp(10, 512)
        found = depth_growth(model, passed(model, (torch.randn(64, 512), torch.randint(512, (64,)))))
        slopes.append((found.forward_slope, found.backward_slope))
        assert found.expected.slope == pytest.approx(0, abs=0.01)
    # At finite width one network's slope is random, of standard deviation below 0.03 here.
    assert np.mean(slopes, axis=0) == pytest.approx([0, 0], abs=0.05)


def test_weights_twice_too_large_grow_as_theory_says():
    torch.manual_seed(0)
    model = he_mlp(8, 256)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(2)
    found = depth_growth(model, passed(model, (torch.randn(64, 256), torch.randint(256, (64,)))))
    assert found.expected.slope == pytest.approx(math.log(4), abs=0.02)
    assert found.forward_slope == pytest.approx(math.log(4), abs=0.15)


@pytest.mark.parametrize(("kind", "slope"), [("standard", math.log(2)), ("uniform", math.log(1 + 1 / 20))])
def test_residual_networks_grow_by_the_mean_field(kind, slope):
    torch.manual_seed(0)
    model = StableResNetMLP(64, 256, 20, 10, kind=kind)
    seen = passed(model, digits_like())
    found = depth_growth(model, seen)
    assert found.expected.slope == pytest.approx(slope, rel=0.02)
    assert found.forward_slope == pytest.approx(slope, abs=0.04)
    assert found.backward_slope == pytest.approx(slope, abs=0.04)
    assert len(seen.residuals) == 20
    assert [unit.name for unit in seen.units] == [f"blocks.{i}" for i in range(20)]


def test_the_signal_and_the_gradient_of_a_linear_chain_are_exact():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5))).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(3 * torch.eye(4))
    x = torch.randn(6, 4, dtype=torch.float64)
    seen = passed(model, x, lambda m, b: m(b).sum())
    assert [unit.q for unit in seen.units] == pytest.approx([9 ** (i + 1) * x.square().mean().item() for i in range(5)])
    assert [unit.grad_norm for unit in seen.units] == pytest.approx([3 ** (4 - i) * math.sqrt(24) for i in range(5)])
    found = depth_growth(model, seen)
    assert found.forward_slope == pytest.approx(math.log(9))
    assert found.backward_slope == pytest.approx(math.log(9))
    assert found.gradient_ratio == pytest.approx(81)
    largest = x.abs().max().item()
    half = next(end for end in failing_depths(seen.units, found) if end.format == "float16")
    assert half.depth == math.ceil(math.log(65504 / largest) / math.log(3))
    assert half.name is None


def test_the_depth_inside_the_model_is_the_first_that_overflows():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(30))).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(2 * torch.eye(4))
    x = torch.ones(2, 4, dtype=torch.float64)
    seen = passed(model, x, lambda m, b: m(b).sum())
    half = next(end for end in failing_depths(seen.units, depth_growth(model, seen)) if end.format == "float16")
    assert (half.depth, half.name, half.what) == (16, "15", "overflows")  # 2^16 is above 65504, 2^15 is not
    report = audit_init(model, x, lambda m, b: m(b).sum(), products=0)
    assert "At depth 16 of 30 (15) the signal overflows float16" in report.findings[0].summary


def test_gradients_that_vanish_are_named_by_format_and_depth():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(12))).double()
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(0.1 * torch.eye(4))
    seen = passed(model, torch.ones(2, 4, dtype=torch.float64), lambda m, b: m(b).sum())
    gone = next(end for end in failing_depths(seen.units, depth_growth(model, seen)) if end.what == "vanishes")
    # 0.1^(12 - depth) is first below float16's smallest number, 2^-24 = 6e-8, eight layers from the end.
    assert (gone.format, gone.depth) == ("float16", 4)
    assert gone.limit == pytest.approx(2**-24)


def test_blocks_are_siblings_with_parts_and_layers_are_the_last_resort():
    blocks, are_blocks = depth_units(TinyTransformer(blocks=4), None)
    assert list(blocks.values()) == [f"blocks.{i}" for i in range(4)]
    assert are_blocks
    layers, are_blocks = depth_units(he_mlp(3, 8), None)
    assert list(layers.values()) == ["0", "2", "4"]
    assert not are_blocks
    towers = nn.ModuleDict({"a": TinyTransformer(blocks=3), "b": TinyTransformer(blocks=3)})
    assert len(depth_units(towers, None)[0]) == 6


# --- Jacobians -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x + eps * x W^T, or without the shortcut."""

    def __init__(self, weight, shortcut=1.0):
        super().__init__()
        self.linear, self.shortcut = nn.Linear(*weight.shape[::-1], bias=False), shortcut
        self.linear.weight = nn.Parameter(weight)

    def forward(self, x):
        return self.shortcut * x + self.linear(x) if self.shortcut else self.linear(x)


def gains(blocks, batch=3, width=12):
    model = nn.Sequential(*blocks).double()
    return [unit.gain for unit in passed(model, torch.randn(batch, width).double(), lambda m, b: m(b).sum()).units]


def test_the_gain_of_multiples_of_rotations_is_exact():
    torch.manual_seed(0)
    rotations = [torch.linalg.qr(torch.randn(12, 12)).Q for _ in range(3)]
    found = gains([Block(factor * q, shortcut=0.0) for factor, q in zip((0.1, 1.0, 7.0), rotations, strict=True)])
    assert found == pytest.approx([0.1, 1.0, 7.0], rel=1e-6)


@pytest.mark.parametrize("shape", [(12, 12), (24, 12)])
def test_the_gain_of_a_linear_block_is_its_frobenius_norm_over_the_root_of_its_outputs(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    found = gains([Block(weight, 0.0), Block(torch.randn(shape[::-1]), 0.0)], batch=4000)[0]
    assert found == pytest.approx((torch.linalg.matrix_norm(weight) / shape[0] ** 0.5).item(), rel=0.02)


@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_the_gain_of_a_shortcut_and_a_small_branch(eps):
    torch.manual_seed(0)
    weight = torch.randn(12, 12, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(torch.eye(12) + eps * weight) / math.sqrt(12)
    found = gains([Block(eps * weight), Block(torch.zeros(12, 12))], batch=4000)
    assert found == pytest.approx([expected.item(), 1.0], rel=0.02)


def test_the_gain_is_the_root_mean_square_of_the_singular_values_of_a_curved_block():
    torch.manual_seed(0)
    model, ids = TinyTransformer(std=1.0, width=8).double(), tokens(1, 4)
    unit = passed(model, ids).units[1]
    with torch.no_grad():
        x = model.blocks[0](model.tokens(ids[0]))
    block = model.blocks[1].eval()
    values = torch.linalg.svdvals(torch.autograd.functional.jacobian(block, x).reshape(32, 32))
    found = [
        jacobian_gain(Point.of(x), Point.of(block(x)), seed, probes=400)
        for x in [x.requires_grad_()]
        for seed in (0, 1)
    ]
    assert found == pytest.approx([values.square().mean().sqrt().item()] * 2, rel=0.03)
    assert unit.gain == pytest.approx(found[0], rel=0.3)  # four vectors of 32 entries


def test_gains_of_random_networks_are_those_of_the_mean_field():
    torch.manual_seed(0)
    standard = passed(StableResNetMLP(64, 256, 10, 10, kind="standard"), digits_like()).units
    assert [unit.gain for unit in standard] == pytest.approx([math.sqrt(2)] * 10, rel=0.05)
    # Layers count from the output of the one before, through the ReLU; the first from its own input, without one.
    layers = passed(he_mlp(5, 256), (torch.randn(64, 256), torch.randint(256, (64,)))).units
    assert [unit.gain for unit in layers] == pytest.approx([math.sqrt(2), *[1.0] * 4], rel=0.05)


def test_products_of_gains_foretell_the_gradient_and_the_report_names_the_block():
    torch.manual_seed(0)
    factors = (1.0, 3.0, 30.0, 3.0, 1.0)
    model = nn.Sequential(*(Block(f * torch.linalg.qr(torch.randn(8, 8)).Q, 0.0) for f in factors))
    report = audit_init(model, torch.randn(6, 8), lambda m, b: m(b).sum(), products=0)
    finding = next(f for f in report.findings if f.cause == "exploding_gradients")
    assert finding.evidence[0].value == pytest.approx(3.0 * 30.0 * 3.0 * 1.0, rel=1e-5)
    assert "depth 3 (2) by 30" in finding.summary
    table = next(block for block in report.blocks if block.title == "By depth")
    assert [row[table.columns.index("Jacobian gain")] for row in table.rows] == pytest.approx(factors, rel=1e-5)
    assert any(block.title == "Jacobian gain over depth" for block in report.blocks)


def test_what_overwrites_an_output_later_does_not_change_gains_nor_do_gains_change_gradients():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    inplace = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2], nn.ReLU(inplace=True), plain[4])
    batch = torch.randn(5, 8), torch.randint(4, (5,))
    a, b = passed(plain, batch).units, passed(inplace, batch).units
    assert [(u.gain, u.grad_norm) for u in a] == [(u.gain, u.grad_norm) for u in b]
    hidden = plain[0](batch[0])
    (grad,) = torch.autograd.grad(F.cross_entropy(plain[1:](hidden), batch[1]), hidden)
    assert a[0].grad_norm == pytest.approx(grad.norm().item())


def test_a_unit_that_does_not_depend_on_the_one_before_has_no_gain_of_it():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) * self.b(x)

    units = passed(Parallel(), torch.randn(3, 4), lambda m, b: m(b).sum()).units
    assert units[0].gain == pytest.approx(1, rel=0.9)
    assert units[1].gain is None


def test_parts_that_are_compiled_are_looked_at_as_they_are():
    torch.manual_seed(0)
    model = TinyTransformer(std=1.0)
    plain = passed(model, tokens())
    model.blocks[1].compile(backend="eager")
    assert passed(model, tokens()) == plain


# --- residual stream, norms ----------------------------------------------------------------------------------------


def test_only_a_branch_computed_from_its_shortcut_makes_a_residual_sum():
    layer, other = nn.Linear(8, 8), nn.Linear(8, 8)
    x = torch.randn(5, 8, requires_grad=True) * 2
    branch = layer(x)
    found = residual_sum("block", x, branch)
    assert found.shortcut == pytest.approx(x.square().mean().sqrt().item())
    assert found.branch == pytest.approx(branch.square().mean().sqrt().item())
    assert residual_sum("block", branch, x) == found
    assert residual_sum("block", x, 0.044715 * x**3) is None  # inside a GELU
    assert residual_sum("block", layer(x), other(x)) is None  # two branches
    assert residual_sum("block", x, branch[:, :1]) is None


def test_a_transformer_has_two_residual_sums_a_block():
    seen = passed(TinyTransformer(), tokens())
    assert [r.name for r in seen.residuals] == [f"blocks.{i}" for i in range(3) for _ in range(2)]
    assert seen.residuals[0].shortcut == pytest.approx(seen.embeddings["tokens"], rel=0.05)


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_norm_amplification_is_one_over_the_standard_deviation(scale):
    norm = nn.LayerNorm(8, eps=0.0).double()
    x = torch.randn(1, 8, dtype=torch.float64)
    x = scale * (x - x.mean()) / x.std(correction=0)
    found = norm_input("norm", norm, x)
    jacobian = torch.autograd.functional.jacobian(norm, x).reshape(8, 8)
    assert found.amplification == pytest.approx(1 / scale, rel=1e-10)
    assert torch.linalg.matrix_norm(jacobian, 2).item() == pytest.approx(found.amplification, rel=1e-10)
    assert norm_input("norm", norm, torch.ones(2, 8)).degenerate == 1


def test_small_embeddings_are_found_with_their_amplification():
    torch.manual_seed(0)
    report = audit_init(TinyTransformer(std=0.02), tokens(), nn.CrossEntropyLoss(), products=0)
    finding = next(f for f in report.findings if f.cause == "small_residual_stream")
    assert finding.evidence[0].value == pytest.approx(50, rel=0.3)
    assert finding.where == ("blocks.0.norm1",)
    assert finding.remedies == ("scale_embedding",)
    fine = audit_init(TinyTransformer(std=1.0), tokens(), nn.CrossEntropyLoss(), products=0)
    assert "small_residual_stream" not in {f.cause for f in fine.findings}


# --- attention, units, recurrence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [1.0, 100.0])
def test_attention_logits_of_identical_maps_are_known(query):
    # Normalised tokens have the squared length 16: the diagonal logit is query * 16 / sqrt(16), the largest there is.
    seen = passed(TinyTransformer(std=1.0, query=query), tokens())
    assert seen.attention[0].name == "blocks.0"
    assert seen.attention[0].largest == pytest.approx(4 * query, rel=1e-3)
    report = audit_init(TinyTransformer(std=1.0, query=query), tokens(), nn.CrossEntropyLoss(), products=0)
    assert ("attention_logit_growth" in {f.cause for f in report.findings}) is (query > 12.5)


def test_dead_units_are_counted_also_where_the_function_was_kept():
    model = StableResNetMLP(64, 32, 4, 10)  # keeps torch.relu
    with torch.no_grad():
        model.blocks[1].branch.linear.bias[:20] = -1e3  # kills 20 of 32 units of the next ReLU
    seen = passed(model, digits_like())
    assert seen.rectified[2].dead >= 20 / 32
    assert seen.rectified[2].rows == 128
    assert seen.rectified[0].dead < 0.1


@pytest.mark.parametrize("batch_first", [True, False])
def test_hidden_state_gain_of_a_linear_map_is_its_norm_to_the_power_of_time(batch_first):
    rnn = nn.RNN(3, 8, batch_first=batch_first)
    with torch.no_grad():
        for p in rnn.parameters():
            p.zero_()
        rnn.weight_hh_l0.copy_(0.5 * torch.linalg.qr(torch.randn(8, 8)).Q)  # at 0, tanh has the derivative 1
    x = torch.randn(30, 30, 3)
    (found,) = hidden_state_gain(rnn, lambda: rnn(x))
    assert found.steps == 30
    assert found.log_gain == pytest.approx(30 * math.log(0.5), rel=1e-6)
    assert found.rho == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e-5, 0.01, 1e5, 1e200])
def test_hidden_state_gain_beyond_the_range_of_floats(scale):
    rnn = nn.RNN(3, 4, batch_first=True, bias=False).double()
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.weight_hh_l0.copy_(scale * torch.eye(4, dtype=torch.float64))
    x = torch.zeros(2, 200, 3, dtype=torch.float64)
    (found,) = hidden_state_gain(rnn, lambda: rnn(x))
    assert found.log_gain == pytest.approx(200 * math.log(scale), rel=1e-9)
    assert found.rho == pytest.approx(scale, rel=1e-9)
    report = audit_init(rnn, x, lambda m, b: (m(b)[0] - 1).square().mean(), products=0)
    (finding,) = [f for f in report.findings if f.cause == "hidden_state_gain"]
    assert f"1e{200 * math.log10(scale):+.0f}" in finding.summary


def test_a_hidden_state_that_does_not_depend_on_the_first_has_no_gain():
    rnn = nn.RNN(3, 4, batch_first=True)
    nn.init.zeros_(rnn.weight_hh_l0)
    x = torch.randn(2, 5, 3)
    (found,) = hidden_state_gain(rnn, lambda: rnn(x))
    assert (found.log_gain, found.rho) == (-math.inf, 0.0)


def test_hidden_state_gain_of_an_lstm_holds_the_first_cell_state():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 5, num_layers=2, proj_size=2, bidirectional=False).double()
    both = nn.LSTM(3, 5, bidirectional=True).double()
    x = torch.randn(7, 1, 3, dtype=torch.float64)
    for rnn, layers, hidden in ((lstm, 2, 2), (both, 2, 5)):
        (found,) = hidden_state_gain(rnn, lambda rnn=rnn: rnn(x))
        c0 = torch.zeros(layers, 1, 5, dtype=torch.float64)
        h0 = torch.zeros(layers, 1, hidden, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda h, rnn=rnn, c0=c0: rnn(x, (h, c0))[1][0], h0)
        norm = torch.linalg.matrix_norm(jacobian.reshape(h0.numel(), h0.numel()), 2).item()
        assert math.exp(found.log_gain) == pytest.approx(norm, rel=0.05)


def test_hidden_state_gain_is_the_norm_of_the_jacobian():
    torch.manual_seed(0)
    rnn = nn.GRU(3, 5, num_layers=2).double()
    x = torch.randn(7, 1, 3, dtype=torch.float64)
    (found,) = hidden_state_gain(rnn, lambda: rnn(x))
    h0 = torch.zeros(2, 1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda h: rnn(x, h)[1], h0).reshape(10, 10)
    assert math.exp(found.log_gain) == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item(), rel=0.05)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU, LayerNormRNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_hidden_state_gain_of_our_own_recurrent_layers_is_the_norm_of_the_jacobian(kind, batch_first):
    torch.manual_seed(0)
    rnn = kind(3, 5, num_layers=2, batch_first=batch_first).double()
    x = torch.randn(1, 7, 3, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    (found,) = hidden_state_gain(nn.ModuleDict({"memory": rnn}), lambda: rnn(x))
    h0 = torch.zeros(2, 1, 5, dtype=torch.float64)

    def last(h):
        end = rnn(x, (h, h0) if kind is LayerNormLSTM else h)[1]
        return end[0] if isinstance(end, tuple) else end

    jacobian = torch.autograd.functional.jacobian(last, h0).reshape(10, 10)
    assert (found.name, found.steps) == ("memory", 7)
    assert math.exp(found.log_gain) == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item(), rel=0.05)


# --- learning rates --------------------------------------------------------------------------------------------------


def quadratic(*curvatures):
    """A loss whose Hessian is diagonal."""
    model = nn.Linear(len(curvatures), 1, bias=False).double()
    h = torch.tensor(curvatures, dtype=torch.float64)
    return (
        model,
        torch.ones(1, len(curvatures)),
        lambda m, b: 0.5 * (h * m.weight.square()).sum() + 0 * m(b.double()).sum(),
    )


def test_limits_on_a_quadratic_are_the_edge():
    model, batch, loss = quadratic(1.0, 4.0, 25.0)
    found = usable_lr(model, as_objective(loss), batch, None, None, 0)
    assert found.exact
    assert found.sgd == pytest.approx(2 / 25)
    heavy = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert usable_lr(model, as_objective(loss), batch, heavy, None, 0).cold == pytest.approx(2 * 1.9 / 25)
    # Curvature does not change on a quadratic: a warm-up gains nothing.
    assert warm_up(model, as_objective(loss), batch, None, 2 / 25, 0) == pytest.approx([2 / 25] * 21)


def test_few_products_bound_the_largest_eigenvalue_from_below():
    from poise.curvature import Hessian

    curvatures = [float(c) for c in torch.linspace(-3, 20, 40)]
    model, batch, loss = quadratic(*curvatures)
    values = []
    for products in (2, 4, 8):
        value, residual, taken = few_products(Hessian(model, loss, batch), products, torch.Generator().manual_seed(0))
        assert value <= 20 + 1e-9
        assert min(abs(c - value) for c in curvatures) <= residual + 1e-9
        assert taken == products
        values.append(value)
    assert values == sorted(values)
    report = audit_init(model, batch, loss, products=4)
    assert "bounded" in report.blocks[-1].markdown


def test_a_learning_rate_beyond_the_edge_is_a_finding():
    model, batch, loss = quadratic(1.0, 100.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    finding = next(f for f in audit_init(model, batch, loss, optimizer).findings if f.cause == "lr_above_curvature")
    assert finding.evidence[0].threshold == pytest.approx(0.02)
    optimizer.param_groups[0]["lr"] = 0.01
    assert not audit_init(model, batch, loss, optimizer).findings


# --- the whole -------------------------------------------------------------------------------------------------------


def state(model):
    flags = [
        (module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()
    ]
    tensors = [*model.parameters(), *model.buffers()]
    return [t.detach().clone() for t in tensors], [p.grad for p in model.parameters()], flags, torch.get_rng_state()


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_the_model_is_touched_and_the_same_seed_gives_the_same_report(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    model[0].requires_grad_(not frozen)
    model[4].weight.grad = torch.full_like(model[4].weight, 7.0)
    model[3].eval()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    functions = F.scaled_dot_product_attention, torch.softmax, torch.Tensor.softmax
    tensors, grads, flags, rng = state(model)
    batch = torch.randn(12, 8), torch.randint(3, (12,))
    rng = torch.get_rng_state()
    reports = [audit_init(model, batch, nn.CrossEntropyLoss(), optimizer) for _ in range(2)]
    after, after_grads, after_flags, after_rng = state(model)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert all(a is b for a, b in zip(grads, after_grads, strict=True))
    assert torch.equal(model[4].weight.grad, torch.full((3, 16), 7.0))
    assert flags == after_flags
    assert torch.equal(rng, after_rng)
    assert functions == (F.scaled_dot_product_attention, torch.softmax, torch.Tensor.softmax)
    assert [p.requires_grad for p in model[0].parameters()] == [not frozen] * 2
    assert not optimizer.state
    assert reports[0].to_dict() == reports[1].to_dict()


def test_a_deep_network_without_normalisation_fails_and_its_stable_twin_does_not():
    torch.manual_seed(0)
    bad = audit_init(StableResNetMLP(64, 64, 50, 10, "standard"), digits_like(), nn.CrossEntropyLoss(), products=0)
    assert bad.verdict == "will fail as it is"
    assert {"signal_growth", "exploding_gradients"} <= {f.cause for f in bad.findings}
    assert "stabilize_residuals" in bad.findings[0].remedies
    assert any("stabilize_residuals" in block.code for block in bad.blocks if block.kind == "code")
    good = audit_init(StableResNetMLP(64, 64, 50, 10, "uniform"), digits_like(), nn.CrossEntropyLoss(), products=0)
    assert good.verdict == "nothing found that would break"


def test_a_signal_that_overflows_is_a_finding_not_an_error():
    torch.manual_seed(0)
    model = StableResNetMLP(64, 64, 300, 10, "standard")
    report = audit_init(model, digits_like(16), nn.CrossEntropyLoss())
    first = report.findings[0]
    assert first.cause == "forward_nonfinite"
    depth = int(first.summary.split("At depth ")[1].split(" ")[0])
    assert 230 < depth < 280  # 2^(2 * 128) is where float32 ends
    assert Report.from_dict(report.to_dict()).verdict == report.verdict


class Output:
    def __init__(self, loss, logits):
        self.loss, self.logits = loss, logits


class WithLoss(TinyTransformer):
    """Takes and returns what transformers' models do."""

    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda model, batch: model(**batch).loss])
def test_batches_and_outputs_of_transformers(loss):
    torch.manual_seed(0)
    ids, labels = tokens()
    report = audit_init(WithLoss(), {"input_ids": ids, "labels": labels}, loss, products=0)
    assert report.meta["loss"] == pytest.approx(math.log(20), rel=0.2)
    assert report.meta["batch"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    torch.manual_seed(0)
    report = audit_init(TinyTransformer(std=1.0).to(dtype), tokens(), nn.CrossEntropyLoss())
    assert report.meta["dtype"] == str(dtype).removeprefix("torch.")
    assert "float32 or float64" in report.blocks[-1].markdown


def test_a_page_has_figures_and_tables():
    torch.manual_seed(0)
    report = audit_init(TinyTransformer(), tokens(), nn.CrossEntropyLoss())
    titles = [block.title for block in report.blocks]
    assert {"Signal over depth", "Residual stream", "Attention", "Largest usable learning rates"} <= set(titles)
    assert "blocks.0.norm1" in report.to_html()


def test_unused_and_starved_parameters_are_named():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-3)
    report = audit_init(
        model, torch.randn(5, 4), lambda m, b: 1e-3 * m["used"](b).square().mean(), optimizer, products=0
    )
    causes = {f.cause: f for f in report.findings}
    assert causes["orphan_parameters"].where == ("unused.weight", "unused.bias")
    assert set(causes["eps_dominates"].where) == {"used.weight", "used.bias"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module, got str"),
        ({"batch": []}, TypeError, "batch must hold a tensor"),
        ({"batch": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))}, ValueError, "at least one example"),
        (
            {"batch": (torch.full((2, 4), math.nan), torch.zeros(2, dtype=torch.long))},
            ValueError,
            "batch must be finite",
        ),
        ({"loss_fn": 3}, TypeError, "loss_fn must be"),
        ({"loss_fn": lambda m, b: m(b[0])}, ValueError, "must return a scalar, got shape"),
        ({"loss_fn": lambda m, b: m(b[0]).sum().item()}, TypeError, "must return a tensor, got float"),
        ({"loss_fn": lambda m, b: m(b[0]).sum().detach()}, ValueError, "depends on none"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)}, ValueError, "holds none of them"),
        ({"blocks": ["nothing.*"]}, ValueError, "blocks must name modules of the model"),
        ({"products": -1}, ValueError, "products must be a whole number"),
    ],
)
def test_bad_input(change, error, words):
    given = {
        "model": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        "batch": (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)),
        "loss_fn": nn.CrossEntropyLoss(),
        **change,
    }
    with pytest.raises(error, match=words):
        audit_init(given.pop("model"), given.pop("batch"), given.pop("loss_fn"), **given)


def test_a_frozen_model_is_an_error():
    model = copy.deepcopy(he_mlp(2, 4)).requires_grad_(False)
    with pytest.raises(ValueError, match="must have a parameter that requires a gradient"):
        audit_init(model, torch.zeros(2, 4), lambda m, b: m(b).sum())
