import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.optim import IndependentAdamW, equilibrium_norm, equivalent_hyperparameters

MAKERS = {
    "sgd": lambda p, lr, wd: torch.optim.SGD([p], lr, weight_decay=wd),
    "sgd momentum": lambda p, lr, wd: torch.optim.SGD([p], lr, momentum=0.9, weight_decay=wd),
    "sgd nesterov": lambda p, lr, wd: torch.optim.SGD([p], lr, momentum=0.9, nesterov=True, weight_decay=wd),
    "adam": lambda p, lr, wd: torch.optim.Adam([p], lr, eps=0.0, weight_decay=wd),
    "adamw": lambda p, lr, wd: torch.optim.AdamW([p], lr, eps=0.0, weight_decay=wd),
    "independent_adamw": lambda p, lr, wd: IndependentAdamW([p], lr, eps=0.0, weight_decay=wd),
}
A = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def directions(make, lr, decay, norm, seed, steps=30):
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(4, generator=g, dtype=torch.float64)
    w = nn.Parameter(norm * start / start.norm())
    optimizer, path = make(w, lr, decay), []
    for _ in range(steps):
        optimizer.zero_grad()
        u = w / w.norm()
        (u @ A @ u + torch.tanh(3 * u[0])).backward()
        optimizer.step()
        path.append((w / w.norm()).detach())
    return torch.stack(path)


@pytest.mark.parametrize("name", MAKERS)
@given(scale=st.floats(0.1, 10), seed=st.integers(0, 100))
@settings(max_examples=6, deadline=None)
def test_equivalent_settings_give_the_same_directions_at_every_step(name, scale, seed):
    lr, decay = (0.01, 0.02) if "adam" in name else (0.05, 0.02)
    other = equivalent_hyperparameters(name.split()[0], lr, decay, scale, norm=1.5)
    assert other.norm == pytest.approx(1.5 * scale)
    ours = directions(MAKERS[name], lr, decay, 1.5, seed)
    torch.testing.assert_close(directions(MAKERS[name], *other, seed), ours, rtol=0, atol=1e-9)


def test_there_and_back_is_where_it_began():
    there = equivalent_hyperparameters("adam", 0.1, 0.3, 7.0)
    back = equivalent_hyperparameters("adam", there.lr, there.weight_decay, 1 / 7.0, there.norm)
    assert back == pytest.approx((0.1, 0.3, 1.0))


def test_sgd_settles_at_the_equilibrium_norm_under_gradients_of_constant_power():
    g = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(300, generator=g, dtype=torch.float64))
    lr, decay, power = 0.5, 0.05, 3.0
    optimizer = torch.optim.SGD([w], lr, weight_decay=decay)
    for _ in range(600):
        v = torch.randn(300, generator=g, dtype=torch.float64)
        v -= w.detach() * (v @ w.detach()) / (w.detach() @ w.detach())
        w.grad = v / v.norm() * math.sqrt(power) / float(w.detach().norm())
        optimizer.step()
    assert float(w.detach().norm()) == pytest.approx(equilibrium_norm("sgd", lr, decay, grad_power=power), rel=1e-9)


@pytest.mark.parametrize("rule", ["adamw", "independent_adamw"])
def test_adamw_settles_near_it_under_noise(rule):
    g = torch.Generator().manual_seed(1)
    d = 4000
    w = nn.Parameter(0.1 * torch.randn(d, generator=g))
    lr, decay = 0.01, 2.0 if rule == "adamw" else 0.02
    optimizer = MAKERS[rule](w, lr, decay)
    optimizer.param_groups[0]["betas"] = (0.0, 0.999)
    for _ in range(400):
        w.grad = torch.randn(d, generator=g)
        optimizer.step()
    numel = equilibrium_norm(rule, lr, decay, numel=d)
    assert float(w.detach().norm()) == pytest.approx(numel, rel=0.03)


def test_laws_of_the_equilibrium():
    def at(lr, decay, **more):
        return equilibrium_norm("sgd", lr, decay, grad_power=2.0, **more)

    assert at(0.1, 1e-4) / at(0.1, 2e-4) == pytest.approx(2**0.25, rel=1e-4)
    effective = [lr / at(lr, wd) ** 2 for lr, wd in ((0.1, 1e-4), (0.2, 5e-5))]
    assert effective[0] == pytest.approx(effective[1], rel=1e-12)  # lr * decay alone decides
    assert at(0.1, 1e-4, momentum=0.9) == pytest.approx(at(1.0, 1e-4), rel=1e-12)
    with pytest.warns(UserWarning, match="grows without bound"):
        assert math.isinf(at(0.1, 0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equivalent_hyperparameters("lion", 0.1, 0.1, 2.0), "rule must be one of"),
        (lambda: equivalent_hyperparameters("sgd", 0.1, 0.1, 0.0), "scale must be positive"),
        (lambda: equivalent_hyperparameters("sgd", 0.1, -0.1, 2.0), "weight_decay must be finite"),
        (lambda: equivalent_hyperparameters("sgd", 0.0, 0.1, 2.0), "lr must be positive"),
        (lambda: equilibrium_norm("adam", 0.1, 0.1, numel=3), "no closed form"),
        (lambda: equilibrium_norm("sgd", 0.1, 0.1), "grad_power must be positive"),
        (lambda: equilibrium_norm("adamw", 0.1, 0.1), "numel must be positive"),
        (lambda: equilibrium_norm("adamw", 0.1, 0.1, numel=3, momentum=0.9), "momentum belongs to"),
        (lambda: equilibrium_norm("sgd", 0.1, 0.1, grad_power=1.0, momentum=1.0), "momentum must lie in"),
        (lambda: equilibrium_norm("sgd", 10.0, 0.3, grad_power=1.0), "less than twice the weight"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
