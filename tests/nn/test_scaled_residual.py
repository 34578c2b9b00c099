import math

import pytest
import torch
from torch import nn

from poise.nn import ScaledResidual, StableResNetMLP, residual_scales
from poise.nn.meanfield import arc_cosine, relu_resnet


def test_sums_of_squares():
    assert residual_scales(37).square().sum().item() == pytest.approx(1, abs=1e-14)
    assert residual_scales(10_000, "decreasing").square().sum().item() == pytest.approx(3.2792, abs=1e-4)
    assert residual_scales(3, "standard").tolist() == [1, 1, 1]
    assert residual_scales(3, lambda branch, n: branch / (4 * n)).tolist() == pytest.approx([1 / 12, 1 / 6, 1 / 4])


def test_custom_scales_that_grow_warn_with_their_sum():
    with pytest.warns(UserWarning, match="sum to 50"):
        residual_scales(50, lambda branch, n: 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "n_branches"), ((3, "cubic"), "kind must be"), ((3, lambda branch, n: math.nan), "finite")],
)
def test_bad_scales(arguments, message):
    with pytest.raises(ValueError, match=message):
        residual_scales(*arguments)


def test_factor_is_a_buffer_or_a_parameter():
    x = torch.randn(3, 4)
    branch = nn.Linear(4, 4)
    fixed, learned = ScaledResidual(branch, 0.5), ScaledResidual(branch, 0.0, learnable=True)
    torch.testing.assert_close(fixed(x), x + 0.5 * branch(x))
    assert "scale" in dict(fixed.named_buffers())
    assert "scale" in fixed.state_dict()
    assert learned.scale.requires_grad
    assert torch.equal(learned(x), x)
    shortcut = nn.Linear(4, 4)
    torch.testing.assert_close(ScaledResidual(branch, 2.0, shortcut=shortcut)(x), shortcut(x) + 2 * branch(x))
    with pytest.raises(ValueError, match="scale must be finite"):
        ScaledResidual(branch, math.nan)


def test_scale_of_zero_is_the_identity_with_its_jacobian():
    net = nn.Sequential(*(ScaledResidual(nn.Linear(4, 4), 0.0) for _ in range(5)))
    x = torch.randn(4)
    assert torch.equal(torch.autograd.functional.jacobian(net, x), torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_compile_empty_autocast(dtype):
    block = ScaledResidual(nn.Linear(4, 4), 0.5)
    x = torch.randn(3, 4)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
    assert block(torch.empty(0, 4)).shape == (0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(x).dtype == torch.float32  # the stream keeps its precision
    assert block.to(dtype)(x.to(dtype)).dtype == dtype


def test_a_factor_survives_the_meta_device():
    with torch.device("meta"):
        block = ScaledResidual(nn.Linear(4, 4), 0.25)
        net = StableResNetMLP(3, 4, 16, 2)
    assert block.scale.is_meta
    assert net.blocks[0].scale.is_meta
    for module in (block, net):
        module.to_empty(device="cpu")
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
    assert block.scale == 0.25
    assert all(part.scale == 0.25 for part in net.blocks)


def test_derivatives():
    net = StableResNetMLP(3, 4, 2, 2, activation=torch.tanh).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)
    assert torch.autograd.gradgradcheck(net, x)


def test_known_limits():
    assert relu_resnet([1.0] * 30).q[-1].item() == pytest.approx(2**30)
    assert relu_resnet(residual_scales(100)).q[-1].item() == pytest.approx(2.7048, abs=1e-4)
    assert relu_resnet(residual_scales(10**5)).q[-1].item() == pytest.approx(math.e, rel=1e-4)
    assert (arc_cosine(1.0), arc_cosine(-1.0), arc_cosine(0.0)) == pytest.approx((1, 0, 1 / math.pi))
    assert (relu_resnet([1.0] * 20, c0=1.0).c == 1).all()
    assert (relu_resnet([1.0] * 50, c0=-0.9).c.diff() >= 0).all()


def test_inputs_become_alike_as_the_square_of_depth_beyond_the_range_of_floats():
    depth = 20_000
    field, c = relu_resnet([1.0] * depth, c0=0.1), 0.1
    for _ in range(depth):
        c = min(1.0, (c + arc_cosine(c)) / 2)  # q doubles with each branch, which leaves c alone
    assert (1 - field.c[-1].item()) * depth**2 == pytest.approx((1 - c) * depth**2, rel=1e-6)
    assert (1 - field.c[-1].item()) * depth**2 == pytest.approx(9 * math.pi**2 * 2, rel=5e-3)
    assert (field.c.diff() >= 0).all()
    assert field.log_q[-1].item() == pytest.approx(depth * math.log(2), rel=1e-12)
    assert field.log_gradient[0].item() == pytest.approx(depth * math.log(2), rel=1e-12)
    assert field.q[-1].isposinf()
    for values in field:
        assert not values.isnan().any()


def test_the_range_of_floats_does_not_enter():
    # Without biases the variance at the start is only a unit: a network that overflows is one that does not.
    small, large = (relu_resnet([0.7] * 3000, q0=q0, c0=0.3) for q0 in (1e-300, 1e300))
    assert small.log_q[-1] - small.log_q[0] == pytest.approx((large.log_q[-1] - large.log_q[0]).item(), rel=1e-12)
    torch.testing.assert_close(small.c, large.c, rtol=0, atol=0)
    torch.testing.assert_close(small.ntk_over_q, large.ntk_over_q, rtol=0, atol=0)
    finite = large.q.isfinite()
    torch.testing.assert_close(large.log_q[finite].exp(), large.q[finite], rtol=1e-11, atol=0)  # exp(700) magnifies


def test_biases_enter_relative_to_the_variance():
    field = relu_resnet([0.5, 1.0, 2.0], sigma_w2=1.4, sigma_b2=0.3, q0=0.2, c0=-0.4)
    q, covariance, ntk = 0.2, -0.4 * 0.2, -0.4 * 0.2
    for square in (0.25, 1.0, 4.0):
        c = covariance / q
        psi = 0.7 * q * arc_cosine(c) + 0.3
        ntk += square * (psi + 0.7 * (0.5 + math.asin(c) / math.pi) * ntk)
        covariance, q = covariance + square * psi, q + square * (0.7 * q + 0.3)
    assert (field.q[-1].item(), field.c[-1].item(), field.ntk[-1].item()) == pytest.approx((q, covariance / q, ntk))
    assert field.ntk_over_q[-1].item() == pytest.approx(ntk / q)


def test_uniform_scales_keep_inputs_apart():
    c = [relu_resnet(residual_scales(depth), c0=0.2).c[-1].item() for depth in (100, 1000, 10_000)]
    assert c[2] < 0.5
    assert abs(c[2] - c[1]) < 0.2 * abs(c[1] - c[0])


def test_ntk_by_the_sum_over_layers():
    """T_L = sum over layers of the forward kernel below them times the product of slopes above."""
    lambdas, q0, c0 = [0.7, 0.4, 1.1], 1.3, 0.2
    q, c = [q0], [c0]
    kernels, slopes = [q0 * c0], []
    for scale in lambdas:
        psi = q[-1] * arc_cosine(c[-1])
        slopes.append(1 + scale**2 * (0.5 + math.asin(c[-1]) / math.pi))
        kernels.append(scale**2 * psi)
        covariance = q[-1] * c[-1] + scale**2 * psi
        q.append(q[-1] * (1 + scale**2))
        c.append(covariance / q[-1])
    expected = sum(kernel * math.prod(slopes[i:]) for i, kernel in enumerate(kernels))
    assert relu_resnet(lambdas, q0=q0, c0=c0).ntk[-1].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["uniform", "decreasing", "standard"])
def test_wide_networks_follow_the_recursions(kind):
    depth, width, torch_state = 6, 512, torch.get_rng_state()
    torch.manual_seed(0)
    x = torch.randn(2, 64)
    ratios, correlations, gradients = [], [], []
    for _ in range(8):
        net = StableResNetMLP(64, width, depth, 1, kind)
        first = net.first(x).detach().requires_grad_()
        y = net.blocks(first)
        u = torch.randn(2, width)
        gradients.append((torch.autograd.grad(y, first, u)[0].square().sum() / u.square().sum()).item())
        ratios.append((y.square().mean() / first.square().mean()).item())
        correlations.append(torch.cosine_similarity(y[0], y[1], dim=0).item())
    torch.set_rng_state(torch_state)
    start = torch.cosine_similarity(x[0], x[1], dim=0).item()
    field = relu_resnet(residual_scales(depth, kind), c0=start)
    assert sum(ratios) / 8 == pytest.approx(field.q[-1].item(), rel=0.1)
    assert sum(correlations) / 8 == pytest.approx(field.c[-1].item(), abs=0.05)
    assert sum(gradients) / 8 == pytest.approx(field.gradient[0].item(), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c0": 1.5}, "c0 must lie"),
        ({"sigma_w2": 0.0}, "sigma_w2 and q0"),
        ({"q0": 0.0}, "sigma_w2 and q0"),
        ({"lambdas": []}, "lambdas must be"),
    ],
)
def test_bad_mean_field(arguments, message):
    with pytest.raises(ValueError, match=message):
        relu_resnet(**{"lambdas": [1.0]} | arguments)


def test_bad_network():
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        StableResNetMLP(3, 4, 0, 2)
    with pytest.raises(ValueError, match="sigma_w2"):
        StableResNetMLP(3, 4, 1, 2, sigma_w2=0)
