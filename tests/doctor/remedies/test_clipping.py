"""clip_grad_norm and clip_update_rms against closed forms and torch's own functions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW

from poise.doctor.remedies import parse_remedy

from .helpers import assert_same, gradients, parameters, permanent, train, treated

SPIKE = [1.0] * 8 + [100.0] + [1.0] * 3


@pytest.mark.parametrize("bound", [0.1, 1.0, 1e6])
def test_clip_grad_norm_is_torchs(bound):
    remedy = parse_remedy(f"clip_grad_norm={bound}")

    def make(ps):
        return SGD(ps, lr=0.1, momentum=0.9)

    with treated(remedy):
        ours, _, _ = train(make, scale=SPIKE)
    _, before = permanent(remedy.code())

    def step(optimizer):
        before(optimizer)
        optimizer.step()

    theirs, _, _ = train(make, scale=SPIKE, step=step)
    assert_same(ours, theirs)


def test_clip_grad_norm_clips_each_optimizer_on_its_own():
    a, b = parameters()
    a.grad, b.grad = torch.full_like(a, 5.0), torch.full_like(b, 0.01)
    with treated(parse_remedy("clip_grad_norm=1")):
        SGD([a], lr=0.1).step()
        SGD([b], lr=0.1).step()
    assert a.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(b.grad, torch.full_like(b, 0.01))


def test_clip_grad_norm_measures_gradients_that_a_scaler_left_scaled():
    (p,) = parameters()[:1]
    optimizer = SGD([p], lr=0.1)
    p.grad = torch.randn_like(p) * 1024
    optimizer.grad_scale = torch.tensor(1024.0)
    parse_remedy("clip_grad_norm=1").before_step(optimizer, None)
    assert (p.grad / 1024).norm().item() == pytest.approx(1.0, rel=1e-5)


def test_clip_grad_norm_without_gradients_does_nothing():
    (p,) = parameters()[:1]
    start = p.detach().clone()
    with treated(parse_remedy("clip_grad_norm")):
        SGD([p], lr=0.1).step()
    assert torch.equal(p, start)
    assert p.grad is None


def stable_adamw(ps_and_grads, lr, betas, eps, decay, clip):
    """The algorithm of the paper, written out, one tensor at a time."""
    p, grads = ps_and_grads
    p, m, v = p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        rms = (g**2 / v_hat.clamp(min=eps**2)).mean().sqrt()
        eta = lr / max(1.0, rms.item() / clip)
        p = p - eta * decay * p - eta * m_hat / (v_hat.sqrt() + eps)
    return p


@pytest.mark.parametrize("clip", [1.0, 2.0])
@pytest.mark.parametrize("foreach", [False, True])
def test_clip_update_rms_is_stable_adamw_with_its_decoupled_decay(clip, foreach):
    lr, betas, eps, decay = 0.05, (0.9, 0.99), 1e-8, 0.3
    with treated(parse_remedy(f"clip_update_rms={clip}")):
        ours, _, _ = train(lambda ps: AdamW(ps, lr, betas, eps, decay, foreach=foreach), scale=SPIKE)
    per_tensor = list(zip(*gradients(12, scale=SPIKE), strict=True))
    theirs = [stable_adamw(pair, lr, betas, eps, decay, clip) for pair in zip(parameters(), per_tensor, strict=True)]
    assert_same(ours, theirs)


def test_clip_update_rms_equals_its_code():
    remedy = parse_remedy("clip_update_rms=1.5")
    with treated(remedy):
        ours, _, _ = train(lambda ps: AdamW(ps, 0.05), scale=SPIKE)
    once, loop = permanent(remedy.code())

    def step(optimizer):
        once(optimizer)
        loop(optimizer)

    assert_same(ours, train(lambda ps: AdamW(ps, 0.05), scale=SPIKE, step=step)[0])


@given(jump=st.floats(1.5, 1e3), beta2=st.floats(0.5, 0.999))
def test_a_gradient_that_jumps_from_one_to_k_is_shortened_by_the_closed_form(jump, beta2):
    # v was 1 for long, then g = k: RMS = k / sqrt(beta2 + (1 - beta2) k^2).
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = AdamW([p], lr=0.1, betas=(0.0, beta2), eps=1e-12, weight_decay=0.0)
    state = optimizer.state[p]
    state["step"] = torch.tensor(1e7)
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.ones_like(p)
    p.grad = torch.full_like(p, jump)
    with treated(parse_remedy("clip_update_rms")):
        optimizer.step()
    rms = jump / math.sqrt(beta2 + (1 - beta2) * jump**2)
    torch.testing.assert_close(-p.detach(), torch.full_like(p, 0.1 * rms / max(1.0, rms)), rtol=1e-6, atol=0)


def test_coupled_decay_of_adam_counts_as_gradient():
    (p,) = parameters()[:1]
    p.grad = torch.zeros_like(p)
    start = p.detach().clone()
    plain = torch.nn.Parameter(start.clone())
    plain.grad = torch.zeros_like(p)
    with treated(parse_remedy("clip_update_rms")):
        Adam([p], lr=0.1, weight_decay=0.5).step()
    Adam([plain], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p, plain)  # g = 0.5 p, v = g^2: RMS is 1


def test_steady_gradients_pass_bit_identically():
    plain, _, _ = train(lambda ps: AdamW(ps, 0.05))
    with treated(parse_remedy("clip_update_rms=40")):
        ours, _, _ = train(lambda ps: AdamW(ps, 0.05))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_unused_coordinates_with_zero_eps_do_not_make_nan():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    p.grad = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    optimizer = AdamW([p], lr=0.1, eps=1e-300, weight_decay=0.0)
    with treated(parse_remedy("clip_update_rms")):
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.9, 0.9, 1.0, 1.0], dtype=torch.float64))


def test_sgd_has_no_second_moment_and_is_left_alone():
    remedy = parse_remedy("clip_update_rms")
    plain, _, _ = train(lambda ps: SGD(ps, 0.05))
    with treated(remedy):
        ours, _, _ = train(lambda ps: SGD(ps, 0.05))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert "SGD keeps no second moment" in remedy.notes[0]


def test_update_clipping_composes_with_a_scaled_lr():
    with treated(parse_remedy("clip_update_rms=1"), parse_remedy("lr_scale=0.5"), parse_remedy("clip_grad_norm=3")):
        ours, lrs, _ = train(lambda ps: AdamW(ps, 0.1), scale=SPIKE)

    def by_hand(optimizer):
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 3)
        optimizer.step()

    with treated(parse_remedy("clip_update_rms=1")):
        theirs, _, _ = train(lambda ps: AdamW(ps, 0.05), scale=SPIKE, step=by_hand)
    assert_same(ours, theirs)
    assert lrs == [[0.1]] * 12
