import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from poise.nn import DiagonalLinear, balance_ratio, log_path_norm, path_norm


def two_layers(seed=0, bias=False):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6, bias=bias), nn.ReLU(), nn.Linear(6, 1, bias=bias)).double()


def test_it_is_the_linear_function_of_its_coefficients():
    net, x = DiagonalLinear(5, depth=3, dtype=torch.float64), torch.randn(7, 2, 5, dtype=torch.float64)
    assert net(x).shape == (7, 2, 1)
    torch.testing.assert_close(net(x)[..., 0], x @ net.weight.prod(0))
    assert "depth=3" in repr(net)


def test_weights_start_as_standard_normal_numbers():
    torch.manual_seed(0)
    weight = DiagonalLinear(4000).weight
    assert weight.mean().item() == pytest.approx(0, abs=0.05)
    assert weight.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("depth", [2, 3])
def test_trace_of_the_gauss_newton_matrix_has_a_closed_form(depth):
    net, x = DiagonalLinear(6, depth, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(net, {"weight": w}, (x,)))(net.weight.detach())
    trace = jacobian.square().sum() / len(x)
    others = sum((net.coefficients() / w).square() for w in net.weight)
    assert trace.item() == pytest.approx((x.square().mean(0) * others).sum().item(), rel=1e-12)


def test_path_norm_of_a_diagonal_network_is_the_1_norm():
    net = DiagonalLinear(3, dtype=torch.float64)
    net.weight.data = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -1.0]])
    assert path_norm(net) == 4 + 10 + 3


def test_path_norm_of_two_layers():
    net = two_layers()
    w, a = net[0].weight, net[2].weight[0]
    assert path_norm(net) == pytest.approx(sum(abs(a[j]) * w[j].norm() for j in range(6)).item(), rel=1e-12)


def test_path_norm_counts_every_path_and_biases_as_weights():
    net = nn.Sequential(nn.Linear(1, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.LeakyReLU()), nn.Linear(2, 1))
    values = [[[3.0], [0.0]], [4.0, -1.0], [[1.0, -1.0], [0.0, 2.0]], [1.0, 0.0], [[-1.0, 3.0]], [0.5]]
    for p, v in zip(net.parameters(), values, strict=True):
        p.data = torch.tensor(v)
    assert path_norm(net) == (5 + 1 + 1) + 3 * 2 + 0.5


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_products_over_depth_do_not_leave_the_range_of_floats(factor):
    depth = 200
    layers = [nn.Linear(3, 3, bias=False).double() for _ in range(depth)]
    for layer in layers:
        layer.weight.data.fill_(factor)
    net = nn.Sequential(*layers)
    expected = math.log(3 * math.sqrt(3)) + depth * math.log(factor) + (depth - 1) * math.log(3)
    assert log_path_norm(net) == pytest.approx(expected, rel=1e-12)
    diagonal = DiagonalLinear(2, depth)
    diagonal.weight.data = torch.full_like(diagonal.weight, factor)
    expected = math.log(2) + depth * math.log(diagonal.weight[0, 0].item())
    assert log_path_norm(diagonal) == pytest.approx(expected, rel=1e-12)
    if factor > 1:
        with pytest.raises(OverflowError, match="use log_path_norm"):
            path_norm(net)
    else:
        layers[-1].bias = nn.Parameter(torch.tensor([1.0, 0.0, 2.0]))  # all that is left of the sum
        assert path_norm(net) == 3.0
        assert log_path_norm(net) == pytest.approx(math.log(3))


def test_large_and_small_factors_of_one_product_cancel():
    net = DiagonalLinear(1, 6, dtype=torch.float64)
    net.weight.data = torch.tensor(
        [[2.0**600], [2.0**600], [2.0**600], [2.0**-600], [2.0**-600], [2.0**-600]], dtype=torch.float64
    )
    assert path_norm(net) == 1.0
    net.weight.data[0] = 0
    assert path_norm(net) == 0.0
    assert log_path_norm(net) == -math.inf


@given(scales=st.lists(st.floats(0.1, 10), min_size=6, max_size=6), bias=st.booleans())
def test_rescaling_units_keeps_the_path_norm_and_the_output(scales, bias):
    net, x = two_layers(bias=bias), torch.randn(8, 4, dtype=torch.float64)
    before, out, c = path_norm(net), net(x), torch.tensor(scales, dtype=torch.float64)
    net[0].weight.data *= c[:, None]
    if bias:
        net[0].bias.data *= c
    net[2].weight.data /= c
    assert path_norm(net) == pytest.approx(before, rel=1e-10)
    torch.testing.assert_close(net(x), out)


def test_trace_is_least_where_units_are_balanced():
    # On the sphere of radius sqrt(d) the trace is sum(|w|^2 + d a^2) / 2: balance at |w| = sqrt(d)|a|.
    torch.manual_seed(0)
    net = two_layers()
    x = torch.randn(20000, 4, dtype=torch.float64)
    x = 2 * x / x.norm(dim=1, keepdim=True)

    def trace(shift):
        a, w = net[2].weight[0], net[0].weight
        c = (2 * a.abs() / w.norm(dim=1)).sqrt() * shift
        a, w = a / c, w * c[:, None]
        hidden = x @ w.T
        return (hidden.relu().square().sum(1) + 4 * ((hidden > 0) * a.square()).sum(1)).mean().item()

    least = trace(1.0)
    assert least < trace(1.1)
    assert least < trace(1 / 1.1)
    assert least == pytest.approx(2 * path_norm(net), rel=0.03)  # sqrt(d) * path norm


def test_balance_ratio_is_one_at_balance_and_grows_away_from_it():
    net = DiagonalLinear(2, dtype=torch.float64)
    net.weight.data = torch.tensor([[1.0, -2.0], [-1.0, 2.0]], dtype=torch.float64)
    assert balance_ratio(net) == pytest.approx(1)
    net.weight.data = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert balance_ratio(net) == pytest.approx((9 + 1 + 1 + 1) / (2 * (3 + 1)))
    net.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert balance_ratio(net) == math.inf


@given(st.integers(0, 1000), st.integers(2, 4))
def test_balance_ratio_is_at_least_one(seed, depth):
    torch.manual_seed(seed)
    assert balance_ratio(DiagonalLinear(5, depth)) >= 1


def test_balance_ratio_of_two_layers():
    net = two_layers()
    w, a = net[0].weight.norm(dim=1), net[2].weight[0].abs()
    expected = (w.square() + a.square()).sum() / (2 * (w * a).sum())
    assert balance_ratio(net) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("features", "depth"), [(0, 2), (3, 0)])
def test_sizes_must_be_positive(features, depth):
    with pytest.raises(ValueError, match="features and depth"):
        DiagonalLinear(features, depth)


def test_what_is_no_homogeneous_network_is_refused_by_name():
    with pytest.raises(ValueError, match="features=3"):
        DiagonalLinear(3)(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="Tanh at '1'"):
        path_norm(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    with pytest.raises(TypeError, match="got Conv2d"):
        path_norm(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="got none"):
        path_norm(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match="two linear layers, got 1"):
        balance_ratio(nn.Sequential(nn.Linear(2, 2)))
    net = DiagonalLinear(3)
    net.weight.data.zero_()
    with pytest.raises(ValueError, match="not zero"):
        balance_ratio(net)
