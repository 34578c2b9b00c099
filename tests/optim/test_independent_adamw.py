import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from poise.optim import IndependentAdamW


def parameters(seed=0, shapes=((3, 4), (4,))):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(*s, generator=generator, dtype=torch.float64)) for s in shapes]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def train(optimizer, params, steps, scheduler=None):
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step()
        if scheduler:
            scheduler.step()


def formula(params, lr, shape, decay, betas, eps):
    """theta <- theta - s (lr Delta + decay theta), written out."""
    out = []
    for p in params:
        theta, m, v = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
        out.append((theta, m, v))
    for step, s in enumerate(shape):
        generator = torch.Generator().manual_seed(100 + step)
        for i, (theta, m, v) in enumerate(out):
            g = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            delta = m / (1 - betas[0] ** (step + 1)) / ((v / (1 - betas[1] ** (step + 1))).sqrt() + eps)
            out[i] = (theta - s * (lr * delta + decay * theta), m, v)
    return [theta for theta, _, _ in out]


@pytest.mark.parametrize("foreach", [False, True])
def test_matches_the_formula_under_a_schedule(foreach):
    params = parameters()
    shape = [0.1, 0.5, 1.0, 0.7, 0.2, 0.01]
    expected = formula(params, 0.03, shape, 0.2, (0.9, 0.95), 1e-8)
    optimizer = IndependentAdamW(params, 0.03, (0.9, 0.95), weight_decay=0.2, foreach=foreach)
    train(optimizer, params, 6, LambdaLR(optimizer, lambda t: shape[min(t, 5)]))
    torch.testing.assert_close([p.detach() for p in params], expected)


@pytest.mark.parametrize("lr", [1e-6, 1e-2, 10.0])
def test_without_gradient_the_decay_is_the_product_over_the_schedule_whatever_the_rate(lr):
    (p,) = parameters(shapes=((5,),))
    start, shape = p.detach().clone(), [0.25, 1.0, 0.5, 0.0]
    optimizer = IndependentAdamW([p], lr, weight_decay=0.1)
    scheduler = LambdaLR(optimizer, lambda t: shape[min(t, 3)])
    for _ in shape:
        p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(p.detach(), start * math.prod(1 - s * 0.1 for s in shape))


def test_equals_adamw_with_decay_divided_by_the_rate():
    ours, theirs = parameters(), parameters()
    a = IndependentAdamW(ours, 0.01, weight_decay=0.05)
    b = torch.optim.AdamW(theirs, 0.01, weight_decay=5.0)
    train(a, ours, 5, CosineAnnealingLR(a, 5))
    train(b, theirs, 5, CosineAnnealingLR(b, 5))
    torch.testing.assert_close(ours, theirs)


def decay_factors(optimizer, p, scheduler, steps):
    factors = []
    for _ in range(steps):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        scheduler.step()
        factors.append(((before - p.detach()) / before).mean().item() / 0.1)
    return factors


def test_warm_up_then_cosine_and_one_cycle_never_exceed_full_decay():
    (p,) = parameters(shapes=((5,),))
    optimizer = IndependentAdamW([p], 0.5, weight_decay=0.1)
    warm = SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 4)], [4])
    factors = decay_factors(optimizer, p, warm, 9)
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)

    (p,) = parameters(shapes=((5,),))
    optimizer = IndependentAdamW([p], 0.5, weight_decay=0.1)
    factors = decay_factors(optimizer, p, OneCycleLR(optimizer, max_lr=3.0, total_steps=10), 10)
    assert factors[0] == pytest.approx(1 / 25)
    assert max(factors) == pytest.approx(1.0, abs=0.02)


def test_groups_decay_by_their_own_schedules():
    a, b = parameters()
    optimizer = IndependentAdamW([{"params": [a]}, {"params": [b], "lr": 7.0, "weight_decay": 0.0}], 1e-3)
    start = b.detach().clone()
    LambdaLR(optimizer, [lambda _: 0.5, lambda _: 1.0])
    a_start = a.detach().clone()
    for p in (a, b):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(a.detach(), a_start * (1 - 0.5e-4))
    torch.testing.assert_close(b.detach(), start)


def test_parameters_without_gradient_are_left_alone():
    a, b = parameters()
    optimizer = IndependentAdamW([a, b], weight_decay=0.5)
    start = b.detach().clone()
    a.grad = torch.ones_like(a)
    optimizer.step()
    assert torch.equal(b, start)


def test_state_dict_resumes_exactly_in_the_middle_of_a_schedule():
    params = parameters()
    optimizer = IndependentAdamW(params, 0.02, weight_decay=0.1)
    scheduler = CosineAnnealingLR(optimizer, 10)
    train(optimizer, params, 4, scheduler)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict(), [p.detach().clone() for p in params]))
    train(optimizer, params, 3, scheduler)

    again = [nn.Parameter(p) for p in saved[2]]
    resumed = IndependentAdamW(again, 0.5, weight_decay=0.3)
    schedule = CosineAnnealingLR(resumed, 10)
    resumed.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    train(resumed, again, 3, schedule)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_goes_on_from_the_state_of_torch_adamw():
    ours, theirs = parameters(), parameters()
    b = torch.optim.AdamW(theirs, 0.01, weight_decay=5.0)
    train(b, theirs, 3)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    a = IndependentAdamW(ours)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    assert a.param_groups[0]["weight_decay"] == pytest.approx(0.05)
    train(a, ours, 3)
    train(b, theirs, 3)
    torch.testing.assert_close(ours, theirs)


def test_closure_maximize_and_return_value():
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = IndependentAdamW([p], 0.1, weight_decay=0.0, maximize=True)

    def closure():
        optimizer.zero_grad()
        loss = -(p**2).sum()
        loss.backward()
        return loss

    values = [optimizer.step(closure).item() for _ in range(30)]
    assert values[0] == -5
    assert values[-1] > -0.5


def test_global_step_hooks_fire_once_even_beside_a_plain_adam():
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.optim.Adam(parameters())
    torch.optim.AdamW(parameters())
    params = parameters()
    optimizer = IndependentAdamW(params)
    seen = []
    handle = register_optimizer_step_post_hook(lambda opt, args, kwargs: seen.append(opt))
    try:
        train(optimizer, params, 1)
    finally:
        handle.remove()
    assert seen == [optimizer]


def test_compiled_step_is_the_eager_step():
    eager, compiled = parameters(), parameters()
    a, b = IndependentAdamW(eager, weight_decay=0.1), IndependentAdamW(compiled, weight_decay=0.1)
    give_gradients(eager, 0)
    give_gradients(compiled, 0)
    a.step()
    torch.compile(b.step, backend="eager")()
    torch.testing.assert_close(eager, compiled)


def test_sparse_gradients_are_refused_before_anything_changes():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = IndependentAdamW(embedding.parameters())
    start = embedding.weight.detach().clone()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
    assert torch.equal(embedding.weight, start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": -1.0}, "learning rate"),
        ({"weight_decay": 1.5}, "weight_decay must lie in"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (1.0, 0.9)}, "beta"),
        ({"eps": -1.0}, "epsilon"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        IndependentAdamW(parameters(), **settings)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="params must be real"):
        IndependentAdamW([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
