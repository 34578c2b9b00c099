import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from poise.optim import NormalizeWeights
from poise.optim.geometry import norm


def weights(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in ((4, 5), (6,), (2, 3, 2, 2))]


def push(optimizer, params, step):
    g = torch.Generator().manual_seed(50 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
    optimizer.step()


@pytest.mark.parametrize("view", ["channel", "layer"])
@pytest.mark.parametrize("radius", ["init", 2.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_stay_at_the_radius(view, radius, dtype):
    params = weights(dtype)
    start = norm([p.detach() for p in params], view)
    optimizer = NormalizeWeights(AdamW(params, 0.1), params, radius, view)
    for step in range(5):
        push(optimizer, params, step)
        for before, now in zip(start, norm([p.detach() for p in params], view), strict=True):
            want = before if radius == "init" else torch.full_like(before, radius)
            torch.testing.assert_close(now, want, rtol=0.01 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_coupled_decay_is_nothing_but_a_learning_rate():
    decayed, plain = weights()[:1], weights()[:1]
    lr, decay = 0.2, 0.3
    a = NormalizeWeights(SGD(decayed, lr, weight_decay=decay), decayed)
    b = NormalizeWeights(SGD(plain, lr / (1 - lr * decay)), plain)
    for step in range(20):
        push(a, decayed, step)
        push(b, plain, step)
    torch.testing.assert_close(decayed, plain, rtol=1e-12, atol=1e-13)


def test_other_parameters_are_left_to_the_optimizer():
    ours, theirs = weights(), weights()
    a, b = NormalizeWeights(SGD(ours, 0.1), ours[:1]), SGD(theirs, 0.1)
    push(a, ours, 0)
    push(b, theirs, 0)
    assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[0], theirs[0])


def test_radii_are_in_the_checkpoint():
    params, others = weights(), [nn.Parameter(2 * p.detach()) for p in weights()]
    a, b = NormalizeWeights(SGD(params, 0.1), params[:2]), NormalizeWeights(SGD(others, 0.1), others[:2])
    b.load_state_dict(a.state_dict())
    push(b, others, 0)
    torch.testing.assert_close(norm([p.detach() for p in others[:2]], "channel"), a.radii)
    narrow = NormalizeWeights(SGD(params, 0.1), params[:1])
    with pytest.raises(ValueError, match="radii of the shapes of params"):
        narrow.load_state_dict(a.state_dict())


def test_rows_that_become_zero_stay_and_are_named():
    (w, *_) = weights()
    optimizer = NormalizeWeights(SGD([w], 0.1), [w])
    assert optimizer.zero_rows() == {}
    with torch.no_grad():
        w[2] = 0
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert optimizer.zero_rows() == {0: [2]}
    assert not w[2].any()
    assert torch.isfinite(w).all()


def test_bad_input():
    params = weights()
    with torch.no_grad():
        params[0][1] = 0
    with pytest.raises(ValueError, match=r"params\[0\] must not have zero rows.*\[1\]"):
        NormalizeWeights(SGD(params, 0.1), params)
    NormalizeWeights(SGD(params, 0.1), params, view="layer")
    with pytest.raises(ValueError, match="view must be 'channel' or 'layer'"):
        NormalizeWeights(SGD(params, 0.1), params, view="global")
    for radius in (0.0, math.inf, "small"):
        with pytest.raises(ValueError, match="radius must be positive"):
            NormalizeWeights(SGD(params, 0.1), params[1:], radius)
    with pytest.raises(ValueError, match="parameters of the optimizer"):
        NormalizeWeights(SGD(params[:1], 0.1), params[1:])
