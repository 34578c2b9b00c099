import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import LBFGS, SGD, AdamW

from poise.nn import UnifiedNorm
from poise.optim import SAM, choose_rho


def quadratic(curvature, w):
    return 0.5 * curvature * (w**2).sum()


def step_on(optimizer, loss_of):
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        return loss

    value = optimizer.step(closure)
    return value, seen


@pytest.mark.parametrize("rho", [0.0, 0.1, 2.0])
def test_unnormalised_sam_on_a_quadratic_in_closed_form(rho):
    w = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    start, lr, curvature = w.detach().clone(), 0.1, 4.0
    optimizer = SAM(SGD([w], lr), rho, normalize=False)
    for _ in range(5):
        step_on(optimizer, lambda: quadratic(curvature, w))
    factor = 1 - lr * curvature * (1 + rho * curvature)
    torch.testing.assert_close(w.detach(), factor**5 * start, rtol=1e-12, atol=0)


@settings(max_examples=20, deadline=None)
@given(lr=st.floats(0.01, 1.0), rho=st.floats(0.01, 2.0))
def test_the_edge_is_where_descent_neither_grows_nor_shrinks(lr, rho):
    edge = (math.sqrt(1 + 8 * rho / lr) - 1) / (2 * rho)
    assert choose_rho(lr, edge) == pytest.approx(rho, rel=1e-6)
    for curvature, compare in ((edge, 0), (1.01 * edge, 1), (0.99 * edge, -1)):
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = SAM(SGD([w], lr), rho, normalize=False)
        for _ in range(3):
            step_on(optimizer, lambda w=w, c=curvature: quadratic(c, w))
        grown = abs(float(w.detach())) - 1
        assert abs(grown) < 1e-9 if compare == 0 else grown * compare > 0


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(10, 4, generator=g, dtype=torch.float64), torch.randint(3, (10,), generator=g)


def loss_on(model, data):
    return lambda: F.cross_entropy(model(data[0]), data[1])


@pytest.mark.parametrize("kind", ["normalised", "unnormalised", "adaptive"])
def test_moves_by_the_formula_and_steps_from_where_it_was(kind):
    model, twin = network(), network()
    params, loss = list(model.parameters()), loss_on(model, batch())
    optimizer = SAM(SGD(params, 0.1), 0.2, normalize=kind != "unnormalised", adaptive=kind == "adaptive")
    before = [p.detach().clone() for p in params]
    grads = torch.autograd.grad(loss(), params)
    if kind == "adaptive":
        size = torch.stack([(w.abs() * g).square().sum() for w, g in zip(before, grads, strict=True)]).sum().sqrt()
        moves = [0.2 * w**2 * g / size for w, g in zip(before, grads, strict=True)]
    else:
        size = torch.stack([g.square().sum() for g in grads]).sum().sqrt() if kind == "normalised" else 1.0
        moves = [0.2 * g / size for g in grads]
    value, (first, second) = step_on(optimizer, loss)
    assert value.item() == pytest.approx(loss_on(twin, batch())().item())
    for w, a, b, e in zip(before, first, second, moves, strict=True):
        assert torch.equal(w, a)
        torch.testing.assert_close(b - w, e, rtol=1e-9, atol=1e-12)
    if kind == "normalised":
        assert sum(float(e.square().sum()) for e in moves) == pytest.approx(0.2**2)
    with torch.no_grad():
        for p, e in zip(twin.parameters(), moves, strict=True):
            p.add_(e)
    uphill = torch.autograd.grad(loss_on(twin, batch())(), list(twin.parameters()))
    for p, w, g in zip(params, before, uphill, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g, rtol=1e-9, atol=1e-12)


def test_no_radius_is_the_wrapped_optimizer_bit_for_bit():
    a, b = network(), network()
    sam, plain = SAM(AdamW(a.parameters(), 0.05), 0.0), AdamW(b.parameters(), 0.05)
    for seed in range(4):
        step_on(sam, loss_on(a, batch(seed)))
        plain.zero_grad()
        loss_on(b, batch(seed))().backward()
        plain.step()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_by_hand_is_the_same_as_with_a_closure():
    a, b = network(), network()
    one, two = SAM(SGD(a.parameters(), 0.1, momentum=0.9)), SAM(SGD(b.parameters(), 0.1, momentum=0.9))
    for seed in range(3):
        step_on(one, loss_on(a, batch(seed)))
        for act in (two.first_step, two.second_step):
            two.zero_grad()
            loss_on(b, batch(seed))().backward()
            act()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_adaptive_radius_follows_the_scale_of_a_tensor_and_leaves_the_others():
    def moves(scale):
        u, v = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in ([1.0, 2.0], [3.0, -1.0]))
        with torch.no_grad():
            u.mul_(scale)
        optimizer = SAM(SGD([u, v], 0.1), 0.5, adaptive=True)
        loss = ((u / scale - v) ** 2).sum()
        loss.backward()
        before = [u.detach().clone(), v.detach().clone()]
        optimizer.first_step()
        return [p.detach() - w for p, w in zip((u, v), before, strict=True)]

    (u1, v1), (u7, v7) = moves(1.0), moves(7.0)
    torch.testing.assert_close(u7, 7 * u1, rtol=1e-10, atol=0)
    torch.testing.assert_close(v7, v1, rtol=1e-10, atol=0)


NORMS = {
    "batch": lambda: nn.BatchNorm1d(4),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "unified": lambda: nn.Sequential(Transposed(), UnifiedNorm(4, warmup_iters=0), Transposed()),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv1d(4, 4, 1)),
}


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_buffers_take_a_batch_in_once_if_the_model_is_known(norm, by_hand):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), NORMS[norm](), nn.Dropout(0.5), nn.Conv1d(4, 2, 1))
    once, unknown, x = copy.deepcopy(model), copy.deepcopy(model), torch.randn(8, 3, 5)
    once(x).square().sum().backward()
    for each, known in ((model, True), (unknown, False)):
        optimizer = SAM(SGD(each.parameters(), 0.1), 0.5, model=each if known else None)
        if by_hand:
            each(x).square().sum().backward()
            optimizer.first_step()
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.second_step()
        else:
            step_on(optimizer, lambda each=each: each(x).square().sum())
    for (name, mine), expected in zip(model.named_buffers(), once.buffers(), strict=True):
        if "gradient" not in name:  # dropout draws other units
            torch.testing.assert_close(mine, expected, rtol=0, atol=0, msg=name)
    assert any(not torch.equal(a, b) for a, b in zip(once.buffers(), unknown.buffers(), strict=True))


def test_both_passes_drop_the_same_units_and_the_random_numbers_go_on():
    masks = []
    dropout, w = nn.Dropout(0.5), nn.Parameter(torch.ones(100))
    optimizer = SAM(SGD([w], 0.0), 0.0)

    def loss():
        out = dropout(w)
        masks.append(out != 0)
        return out.sum()

    for _ in range(2):
        step_on(optimizer, loss)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_a_schedule_of_the_radius_and_radii_of_groups():
    u, v = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = SAM(SGD([{"params": [u], "rho": 3.0}, {"params": [v]}], 0.0), 0.5, normalize=False)
    (u + v).backward()
    optimizer.first_step()
    assert (u.item(), v.item()) == (4.0, 1.5)

    w, used = nn.Parameter(torch.ones(1)), []
    scheduled = SAM(SGD([w], 0.0), lambda step: 0.1 * (step + 1))
    for _ in range(3):
        step_on(scheduled, lambda: w.sum())
        used.append(scheduled.param_groups[0]["rho"])
    assert used == pytest.approx([0.1, 0.2, 0.3])


def test_zero_gradient_moves_nothing():
    w = nn.Parameter(torch.ones(3))
    _, (_, second) = step_on(SAM(SGD([w], 0.1)), lambda: 0 * w.sum())
    assert torch.equal(second[0], torch.ones(3))
    assert torch.equal(w, torch.ones(3))


def test_a_closure_that_returns_nothing_and_one_that_fails_uphill():
    w = nn.Parameter(torch.ones(2))
    optimizer, calls = SAM(SGD([w], 0.1), 0.5), []

    def closure():
        optimizer.zero_grad()
        w.square().sum().backward()
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("uphill")

    assert optimizer.step(closure) is None
    before = w.detach().clone()
    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert torch.equal(w, before)
    optimizer.step(closure)


def test_bad_input():
    w = nn.Parameter(torch.ones(2))
    for rho in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="rho must be finite"):
            SAM(SGD([w], 0.1), rho)
    with pytest.raises(ValueError, match="must not be LBFGS"):
        SAM(LBFGS([w]))
    with pytest.raises(ValueError, match="eps must not be negative"):
        SAM(SGD([w], 0.1), eps=-1.0)
    optimizer = SAM(SGD([w], 0.1))
    with pytest.raises(RuntimeError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="must follow first_step"):
        optimizer.second_step()
    w.sum().backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.first_step()
    optimizer.second_step()
    optimizer.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match="rho must be finite"):
        optimizer.first_step()
    with pytest.raises(ValueError, match=r"below 2 / lr = 20.*got 30"):
        choose_rho(0.1, 30.0)
    with pytest.raises(ValueError, match="lr must be positive"):
        choose_rho(0.0, 3.0)
