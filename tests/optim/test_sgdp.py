import math

import pytest
import torch
from torch import nn

from poise.optim import SGDP
from poise.optim.geometry import tangential


def weight(seed=0, shape=(4, 5)):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def gradient(w, step, tangent=True):
    g = torch.randn(w.shape, generator=torch.Generator().manual_seed(500 + step), dtype=torch.float64)
    return tangential(w.detach(), g, "channel") if tangent else g + w.detach()  # which passes no test


def formula(w, steps, lr, momentum, dampening=0.0, decay=0.0, nesterov=False, ratio=0.1):
    """The paper's algorithm with a raw buffer, for gradients that pass the test at every other step."""
    w, buffer = w.detach().clone(), torch.zeros_like(w)
    for step in range(steps):
        g = gradient(w, step, step % 2 == 0)
        buffer = momentum * buffer + (1 - dampening) * g
        u = g + momentum * buffer if nesterov else buffer
        share = 1.0
        if step % 2 == 0:
            n = w / (w.norm(dim=1, keepdim=True) + 1e-8)
            u, share = u - n * (n * u).sum(1, keepdim=True), ratio
        w = w * (1 - lr * decay * share / (1 - momentum)) - lr * u
    return w


@pytest.mark.parametrize(
    "settings",
    [{}, {"nesterov": True}, {"dampening": 0.5}, {"decay": 0.2}, {"decay": 0.2, "ratio": 0.7, "nesterov": True}],
)
def test_equals_the_papers_algorithm_whose_buffer_is_never_projected(settings):
    w = weight()
    want = formula(w, 20, 0.05, 0.9, **settings)
    names = {"decay": "weight_decay", "ratio": "wd_ratio"}
    optimizer = SGDP([w], 0.05, 0.9, **{names.get(k, k): v for k, v in settings.items()})
    for step in range(20):
        w.grad = gradient(w, step, step % 2 == 0)
        optimizer.step()
    torch.testing.assert_close(w.detach(), want, rtol=1e-12, atol=1e-12)


def test_never_projecting_is_torchs_sgd():
    ours, theirs = weight(), weight()
    a = SGDP([ours], 0.1, 0.9, nesterov=True, delta=0.0)
    b = torch.optim.SGD([theirs], 0.1, 0.9, nesterov=True)
    for step in range(10):
        ours.grad, theirs.grad = gradient(ours, step), gradient(theirs, step)
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_momentum_obeys_the_exact_law_of_the_norm_and_sgdp_does_not_inflate_it():
    plain, projected = weight(shape=(1, 12)), weight(shape=(1, 12))
    lr, beta = 0.05, 0.9
    a, b = torch.optim.SGD([plain], lr, beta), SGDP([projected], lr, beta)
    lengths = []
    for step in range(200):
        before, norm = plain.detach().clone(), float(projected.detach().square().sum())
        plain.grad = gradient(plain, step)
        a.step()
        p = (before - plain.detach()) / lr
        past = sum(beta ** (step - k) * length for k, length in enumerate(lengths))
        lengths.append(float(p.square().sum()))
        want = float(before.square().sum()) + lr**2 * (lengths[-1] + 2 * past)
        assert float(plain.detach().square().sum()) == pytest.approx(want, rel=1e-8)

        start = projected.detach().clone()
        projected.grad = gradient(projected, step)
        b.step()
        q = (start - projected.detach()) / lr
        want = norm + lr**2 * float(q.square().sum())
        assert float(projected.detach().square().sum()) == pytest.approx(want, rel=1e-7)
    assert plain.detach().norm() > 1.5 * projected.detach().norm()


def test_all_projected_with_full_decay_shrinks_the_norm_before_the_tangential_step():
    w = weight()
    optimizer = SGDP([w], 0.1, 0.5, weight_decay=0.2, wd_ratio=1.0)
    before = w.detach().clone()
    w.grad = gradient(w, 0)
    optimizer.step()
    kept = 1 - 0.1 * 0.2 / 0.5
    torch.testing.assert_close(tangential(before, w.detach(), "channel"), -0.1 * w.grad, rtol=1e-7, atol=1e-9)
    along = (w.detach() * before).sum(1) / before.square().sum(1)
    torch.testing.assert_close(along, torch.full_like(along, kept), rtol=1e-7, atol=0)


def test_no_momentum_is_gradient_descent():
    w = weight()
    start = w.detach().clone()
    optimizer = SGDP([w], 0.1)
    w.grad = gradient(w, 0)
    optimizer.step()
    torch.testing.assert_close(w.detach(), start - 0.1 * w.grad, rtol=0, atol=1e-9)
    assert math.isclose(float(optimizer.state[w]["momentum_buffer"].norm()), float(w.grad.norm()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr must not be negative"),
        ({"momentum": -0.5}, "momentum must not be negative"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs a momentum and no dampening"),
        ({"momentum": 1.0, "weight_decay": 0.1}, "momentum must not be 1 with weight decay"),
        ({"delta": -1.0}, "delta must not be negative"),
        ({"scale_invariant": 3}, "scale_invariant must be one of"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SGDP([weight()], **{"lr": 0.1, **settings})
