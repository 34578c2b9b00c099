import copy

import pytest
import torch
from torch import nn

from poise.losses import SpectralRegularizer


def linear(weight, bias=None):
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


@pytest.mark.parametrize(("k", "wanted"), [(2, 89.0), (1, 9.0)])
def test_worked_values(k, wanted):
    layer = linear([[3.0, 0.0], [0.0, 1.0]], [1.0, 2.0])
    assert SpectralRegularizer(layer, k=k)().item() == pytest.approx(wanted, abs=1e-9)


def test_an_orthogonal_matrix_costs_nothing_and_has_no_gradient():
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    layer = linear(q, [0.0] * 5)
    penalty = SpectralRegularizer(layer)()
    penalty.backward()
    assert penalty.item() == pytest.approx(0, abs=1e-20)
    assert layer.weight.grad.abs().max() < 1e-12


@pytest.mark.parametrize("k", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_singular_value(k):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64)
    u, s, v = torch.linalg.svd(weight)
    layer = linear(weight)
    regularizer = SpectralRegularizer(layer, k=k, iterations=200)
    penalty = regularizer()
    penalty.backward()
    assert penalty.item() == pytest.approx((s[0].item() ** k - 1) ** 2, rel=1e-9)
    wanted = 2 * (s[0] ** k - 1) * k * s[0] ** (k - 1) * torch.outer(u[:, 0], v[0])
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-6, atol=1e-9)
    assert torch.linalg.matrix_rank(layer.weight.grad) == 1
    turned = SpectralRegularizer(linear(weight.T), k=k, iterations=200)
    assert turned().item() == pytest.approx(penalty.item(), rel=1e-9)
    scaled = SpectralRegularizer(linear(-3 * weight), iterations=200)
    scaled()
    assert scaled.singular_values()["weight"] == pytest.approx(3 * s[0].item(), rel=1e-6)


def test_the_estimate_is_never_too_large_and_converges_as_the_squared_ratio():
    layer = linear(torch.diag(torch.tensor([2.0, 1.8, 0.5])))
    regularizer = SpectralRegularizer(layer)
    start = torch.ones(3, dtype=torch.float64) / 3**0.5
    regularizer._matrices[0].u = start.clone()
    errors = []
    for _ in range(30):
        regularizer()
        errors.append(2.0 - regularizer.singular_values()["weight"])
    assert min(errors) >= -1e-6
    assert errors[-1] / errors[-2] == pytest.approx(
        (1.8 / 2.0) ** 4, abs=0.05
    )  # of the value: the square of a vector's


def test_a_default_layer_has_the_penalty_of_its_norm():
    torch.manual_seed(0)
    layer = nn.Linear(784, 128)
    nn.init.zeros_(layer.bias)
    assert SpectralRegularizer(layer)().item() == pytest.approx((0.81**2 - 1) ** 2, abs=0.03)
    assert SpectralRegularizer(layer, target="init")().item() == pytest.approx(0, abs=1e-3)


def test_what_is_regularised_and_how():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 3, 3),
            "norm": nn.LayerNorm(4),
            "attention": nn.MultiheadAttention(4, 2),
            "head": nn.Linear(4, 2),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "scale": nn.ParameterDict({"value": nn.Parameter(torch.ones(3))}),
        }
    )
    model["tied"] = model["head"]
    with torch.no_grad():
        model["norm"].weight.fill_(2.0)
        model["norm"].bias.fill_(0.5)
    regularizer = SpectralRegularizer(model)
    terms = regularizer.per_layer()
    assert terms["norm.weight"] == pytest.approx(4 * 9)
    assert terms["norm.bias"] == pytest.approx(1.0)
    assert {"conv.weight", "head.weight", "attention.out_proj.weight"} < set(terms)
    assert sum(name.startswith("attention.in_proj_weight") for name in terms) == 3
    assert not any(name.startswith(("tied", "frozen")) for name in terms)
    assert set(regularizer.skipped) == {"frozen.weight", "frozen.bias", "scale.value"}
    kernel = torch.linalg.matrix_norm(model["conv"].weight.flatten(1), 2).item()
    assert regularizer.singular_values()["conv.weight"] == pytest.approx(kernel, rel=0.02)
    less = SpectralRegularizer(model, include=["head.*", "norm.*"], norm=False, bias=False)
    assert set(less.per_layer()) == {"head.weight"}


def test_a_resumed_penalty_is_the_next_one_bit_for_bit_and_no_random_number_is_drawn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    state = torch.get_rng_state()
    regularizer = SpectralRegularizer(model)
    regularizer()
    kept = copy.deepcopy(regularizer.state_dict())
    wanted = regularizer()
    other = SpectralRegularizer(model, seed=5)
    other.load_state_dict(kept)
    assert other() == wanted
    assert torch.equal(state, torch.get_rng_state())


def test_decoupled_steps_bring_the_norm_to_one_at_the_rate_of_the_gradient():
    layer, twin = linear([[3.0, 0.0], [0.0, 1.0]]), linear([[3.0, 0.0], [0.0, 1.0]])
    regularizer = SpectralRegularizer(layer)
    SpectralRegularizer(twin)().backward()
    regularizer.decay_(1e-3)
    torch.testing.assert_close(layer.weight, twin.weight - 1e-3 * twin.weight.grad)
    for _ in range(400):
        regularizer.decay_(1e-2)
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="must have a matrix"):
        SpectralRegularizer(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="must be positive"):
        SpectralRegularizer(nn.Linear(2, 2), k=0)
    with pytest.warns(UserWarning, match="weight is zero"):
        zero = SpectralRegularizer(linear([[0.0, 0.0]]))
    zero().backward()
    with pytest.raises(ValueError, match="finite, got NaN or infinities in weight"):
        SpectralRegularizer(linear([[float("nan"), 0.0]]))
    model = nn.Linear(3, 2)
    regularizer = SpectralRegularizer(model)
    model.weight.data = torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match=r"call rebuild\(\)"):
        regularizer()
    with pytest.raises(ValueError, match="matrices named"):
        SpectralRegularizer(nn.Linear(2, 2)).load_state_dict({})
