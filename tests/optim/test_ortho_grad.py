import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import LBFGS, SGD, AdamW

from poise.optim import OrthoGrad
from poise.optim.geometry import cosine, norm


def parameters(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in ((4, 5), (6,), (2, 3, 2, 2))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g).to(dtype)
    return params


def project(weights, **settings):
    optimizer = OrthoGrad(SGD(weights, 0.1), **settings)
    optimizer.project()
    return [w.grad for w in weights]


@given(seed=st.integers(0, 1000), view=st.sampled_from(["tensor", "channel", "global"]), graft=st.booleans())
@settings(max_examples=20, deadline=None)
def test_projected_gradients_are_orthogonal_and_keep_their_norm_if_grafted(seed, view, graft):
    params = parameters(seed)
    before = [p.grad.clone() for p in params]
    sizes = norm(before, view)
    after = project(params, view=view, graft=graft)
    for c in cosine([p.detach() for p in params], after, view):
        assert c.abs().max() < 1e-12
    for old, new, c in zip(sizes, norm(after, view), cosine([p.detach() for p in params], before, view), strict=True):
        keeps = 1.0 if graft else (1 - c**2).sqrt().reshape(old.shape)
        torch.testing.assert_close(new, old * keeps, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_projection_itself_in_float64(dtype):
    params = parameters(dtype=dtype)
    wanted = []
    for p in params:
        w, g = p.detach().double().flatten(), p.grad.double().flatten()
        across = g - w * (w @ g) / (w @ w)
        wanted.append((across * g.norm() / across.norm()).reshape(p.shape).to(dtype))
    torch.testing.assert_close(project(params), wanted)


def test_global_is_one_relation_and_equals_tensor_for_a_single_one():
    params = parameters()
    after = project(params, view="global")
    products = [float((p.detach() * g).sum()) for p, g in zip(params, after, strict=True)]
    assert abs(sum(products)) < 1e-12
    assert max(map(abs, products)) > 1e-2
    one, other = parameters()[:1], parameters()[:1]
    torch.testing.assert_close(project(one, view="global"), project(other, view="tensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_parallel_gradient_becomes_zero_and_not_noise(dtype):
    for p in (params := parameters(dtype=dtype)):
        p.grad = -2 * p.detach()
    assert not any(g.any() for g in project(params))


def test_a_gradient_whose_square_overflows_becomes_zero_and_not_nan():
    w, other = parameters(dtype=torch.float32)[:2]
    w.grad *= 1e25
    expected = parameters(dtype=torch.float32)[1]
    project([w, other])
    project([expected])
    assert torch.equal(w.grad, torch.zeros_like(w))
    assert torch.equal(other.grad, expected.grad)


def test_single_numbers_and_zero_weights_keep_their_gradients():
    scalar, one, zero = (nn.Parameter(x) for x in (torch.tensor(2.0), torch.tensor([3.0]), torch.zeros(4)))
    for p in (scalar, one, zero):
        p.grad = torch.ones_like(p)
    project([scalar, one, zero])
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in (scalar, one, zero))


def test_layouts_without_a_flat_view():
    w = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    w.grad = torch.randn(4, 3, 2, 2)
    project([w])
    assert cosine(w.detach(), w.grad).abs() < 1e-6


def test_the_norm_grows_by_the_step_alone_under_sgd():
    (w, *_) = parameters()
    optimizer = OrthoGrad(SGD([w], 0.1), graft=False)
    for step in range(20):
        before = float(w.detach().square().sum())
        w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(step), dtype=w.dtype)
        optimizer.step()
        assert float(w.detach().square().sum()) == pytest.approx(
            before + 0.01 * float(w.grad.square().sum()), rel=1e-12
        )


def test_only_the_chosen_parameters_are_projected():
    params = parameters()
    kept = params[0].grad.clone()
    project(params, params=params[1:])
    assert torch.equal(params[0].grad, kept)
    assert cosine(params[1].detach(), params[1].grad).abs() < 1e-12


def test_every_evaluation_of_a_closure_is_projected():
    w = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = OrthoGrad(LBFGS([w], lr=0.5, max_iter=3), graft=False)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = (w - torch.tensor([3.0, 1.0])).square().sum()
        loss.backward()
        seen.append(w.grad)
        return loss

    optimizer.step(closure)
    assert len(seen) > 1
    first = torch.tensor([1.0, 1.0]).double()
    assert abs(float(seen[0] @ first)) < 1e-12
    assert float(w.detach()[1]) < 1  # it turns instead of growing straight at the target


def test_moments_of_the_wrapped_optimizer_are_in_the_checkpoint():
    params = parameters()
    optimizer = OrthoGrad(AdamW(params))
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_bad_input():
    params = parameters()
    with pytest.raises(ValueError, match="view must be one of"):
        OrthoGrad(SGD(params, 0.1), view="row")
    with pytest.raises(ValueError, match="noise_floor must not be negative"):
        OrthoGrad(SGD(params, 0.1), noise_floor=-1.0)
    with pytest.raises(ValueError, match=r"params must be parameters of the optimizer, got others at positions \[1\]"):
        OrthoGrad(SGD(params[:1], 0.1), params=params[:2])
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        OrthoGrad(params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cosine", [0.0, -0.3, 0.8, 0.86, 0.87, -0.99])
def test_a_projected_gradient_is_the_definition_at_every_angle(cosine, dtype):
    # From a cosine of sqrt(3) / 2 on, the norm of what is left is summed, below it is Pythagoras's.
    generator = torch.Generator().manual_seed(0)
    w, across = torch.linalg.qr(torch.randn(500, 2, generator=generator, dtype=torch.float64)).Q.T
    gradient = 3 * (cosine * w + math.sqrt(1 - cosine**2) * across)
    weight = torch.nn.Parameter((2 * w).view(20, 25).to(dtype))
    for graft in (True, False):
        weight.grad = gradient.view(20, 25).to(dtype)
        a, b = weight.detach().double().flatten(), weight.grad.double().flatten()
        expected = b - a * (a @ b) / (a @ a)
        expected = expected * b.norm() / expected.norm() if graft else expected
        OrthoGrad(torch.optim.SGD([weight], lr=0.0), graft=graft).step()
        error = (weight.grad.double().flatten() - expected).norm() / expected.norm()
        assert error < 8 * torch.finfo(dtype).eps / math.sqrt(1 - cosine**2)
