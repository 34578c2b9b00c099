import copy
import math

import pytest
import torch
from torch import nn

from poise.nn import SDDLinear


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 3])
def test_root_mean_square_is_one_whatever_the_scales(groups):
    layer = SDDLinear(7, 12, groups=groups, eps=1e-14).double()
    nn.init.uniform_(layer.alpha, 0.5, 2)
    x = inputs(4, 5, 7)
    y = layer(x)
    parts = (y / layer.alpha).unflatten(-1, (groups, -1))
    torch.testing.assert_close(parts.square().mean(-1), torch.ones_like(parts[..., 0]))
    torch.testing.assert_close(layer(30 * x), y)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    torch.testing.assert_close(layer(x), y)


def test_gradient_is_orthogonal_to_the_weights_and_inverse_to_their_norm():
    layer = SDDLinear(6, 9, eps=1e-14).double()
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        doubled.weight.mul_(2)
    x, u = inputs(5, 6), inputs(5, 9, seed=1)
    for each in (layer, doubled):
        each(x).backward(u)
    assert (layer.weight * layer.weight.grad).sum().abs() < 1e-9
    torch.testing.assert_close(doubled.weight.grad, layer.weight.grad / 2)
    assert layer.alpha.grad.norm() <= u.norm(dim=-1).sum() * math.sqrt(9)


def test_three_groups_are_three_layers():
    fused = SDDLinear(6, 12, groups=3)
    nn.init.uniform_(fused.alpha)
    x = torch.randn(5, 6)
    apart = []
    for weight, alpha in zip(fused.weight.chunk(3), fused.alpha.chunk(3), strict=True):
        layer = SDDLinear(6, 4)
        layer.load_state_dict({"weight": weight, "alpha": alpha})
        apart.append(layer(x))
    torch.testing.assert_close(fused(x), torch.cat(apart, -1))


def test_is_linear_then_rms_norm():
    layer, norm = SDDLinear(6, 9), nn.RMSNorm(9, eps=1e-6)
    linear = nn.Linear(6, 9, bias=False)
    linear.load_state_dict({"weight": layer.weight})
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), norm(linear(x)), atol=1e-6, rtol=1e-6)


def test_initial_weights_and_parameters_added():
    layer = SDDLinear(200, 300, alpha_init=0.25)
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(500), rel=0.02)
    assert (layer.alpha == 0.25).all()
    assert sum(p.numel() for p in layer.parameters()) == 200 * 300 + 300


@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives(groups):
    layer = SDDLinear(3, 4, groups=groups).double()
    x = inputs(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


def test_conversion_is_exact_where_the_root_mean_square_is_constant():
    linear = nn.Linear(5, 5, bias=False).double()
    nn.init.orthogonal_(linear.weight)
    x = nn.functional.normalize(inputs(40, 5), dim=-1)
    layer = SDDLinear.from_linear(linear, x, eps=1e-14)
    torch.testing.assert_close(layer(x), linear(x))
    back, error = layer.to_linear(x)
    assert error < 1e-6
    torch.testing.assert_close(back(x), linear(x))


def test_conversion_back_states_its_error():
    layer = SDDLinear(5, 6, groups=2).double()
    x = inputs(100, 5)
    linear, error = layer.to_linear(x)
    target = layer(x)
    assert error == pytest.approx(((linear(x) - target).norm() / target.norm()).item())
    assert 0.05 < error < 1
    with torch.no_grad():
        linear.weight.mul_(1.01)  # it was the best factor
    assert (linear(x) - target).norm() / target.norm() > error


def test_conversion_without_calibration_keeps_weights_only():
    linear = nn.Linear(5, 6, bias=False).eval()
    layer = SDDLinear.from_linear(linear, alpha_init=0.5)
    assert torch.equal(layer.weight, linear.weight)
    assert (layer.alpha == 0.5).all()
    assert not layer.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_and_empty(dtype):
    layer = SDDLinear(16, 8).to(dtype)
    y = layer(torch.full((2, 16), 2000.0, dtype=dtype))  # squares of the products exceed float16
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert y.float().square().mean().item() == pytest.approx(1, rel=0.05)
    assert layer(torch.empty(0, 16, dtype=dtype)).shape == (0, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert SDDLinear(16, 8)(torch.randn(3, 16)).dtype == torch.bfloat16


def test_compiles_without_graph_breaks():
    layer = SDDLinear(6, 9, groups=3)
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 5}, "groups must divide out_features=9"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"alpha_init": math.nan}, "alpha_init must be finite"),
        ({"std": -1.0}, "std must be positive"),
        ({"in_features": 0}, "must be at least 1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        SDDLinear(**{"in_features": 6, "out_features": 9} | arguments)


def test_bad_conversions():
    with pytest.raises(ValueError, match="linear must have no bias"):
        SDDLinear.from_linear(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="calibration must hold inputs"):
        SDDLinear(2, 2).to_linear(torch.empty(0, 2))
