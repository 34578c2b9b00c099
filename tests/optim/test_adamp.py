import copy
import math

import pytest
import torch
from torch import nn

import poise.optim.scale_invariant_projection as projection
from poise.optim import AdamP

SHAPES = ((5, 7), (3, 2, 2, 2), (4,), (6, 6), ())


def parameters(seed=0, dtype=torch.float64, shapes=SHAPES):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in shapes]


def tangent(w, g, per_channel):
    w2, g2 = (t.reshape(t.shape[0] if per_channel else 1, -1) for t in (w, g))
    return (g2 - w2 * ((g2 * w2).sum(1, keepdim=True) / (w2 * w2).sum(1, keepdim=True))).reshape(g.shape)


def give_gradients(params, step, kind="mixed"):
    """Random gradients: as they come, orthogonal per channel, or orthogonal as a whole only."""
    g = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
        choice = ("plain", "channel", "layer")[(i + step) % 3] if kind == "mixed" else kind
        if p.ndim > 1 and choice != "plain":
            grad = tangent(p.detach(), grad, choice == "channel")
        p.grad = grad


def formula(params, steps, lr=0.1, betas=(0.9, 0.999), eps=1e-8, decay=0.0, delta=0.1, ratio=0.1, nesterov=False):
    """The paper's algorithm in float64, one tensor after the other."""
    ws = [nn.Parameter(p.detach().clone()) for p in params]
    ms, vs = [torch.zeros_like(w) for w in ws], [torch.zeros_like(w) for w in ws]
    views = []
    for t in range(1, steps + 1):
        give_gradients(ws, t - 1)
        views.append([])
        for w, m, v in zip(ws, ms, vs, strict=True):
            g = w.grad
            m.copy_(betas[0] * m + (1 - betas[0]) * g)
            v.copy_(betas[1] * v + (1 - betas[1]) * g * g)
            top = betas[0] * m + (1 - betas[0]) * g if nesterov else m
            u = top / (v.sqrt() / math.sqrt(1 - betas[1] ** t) + eps)
            view, share = None, 1.0
            for rows in (w.shape[0], 1) if w.ndim > 1 else ():
                w2, g2, u2 = (x.detach().reshape(rows, -1) for x in (w, g, u))
                cos = (g2 * w2).sum(1).abs() / (g2.norm(dim=1).clamp_min(eps) * w2.norm(dim=1).clamp_min(eps))
                if cos.max() < delta / math.sqrt(w2.shape[1]):
                    n = w2 / (w2.norm(dim=1, keepdim=True) + eps)
                    u = (u2 - n * (n * u2).sum(1, keepdim=True)).reshape(w.shape)
                    view, share = rows, ratio
                    break
            views[-1].append(view)
            with torch.no_grad():
                w.mul_(1 - lr * decay * share).sub_(lr / (1 - betas[0] ** t) * u)
    return [w.detach() for w in ws], views


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decay": 0.3},
        {"nesterov": True, "decay": 0.3, "ratio": 0.0},
        {"delta": 3.0, "decay": 0.5, "ratio": 1.0},
        {"betas": (0.5, 0.9), "eps": 1e-3},
    ],
)
def test_equals_the_papers_algorithm(settings, foreach):
    params = parameters()
    want, views = formula(params, 12, **settings)
    names = {"decay": "weight_decay", "ratio": "wd_ratio"}
    optimizer = AdamP(params, 0.1, foreach=foreach, **{names.get(k, k): v for k, v in settings.items()})
    for step in range(12):
        give_gradients(params, step)
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], want, rtol=1e-12, atol=1e-12)
    if "delta" not in settings:
        assert {5, 1, None} <= {view for step in views for view in step}  # every branch was taken


def test_kernels_agree_bit_for_bit_where_torchs_do():
    ours, loop = parameters(), parameters()
    a, b = AdamP(ours, 0.1, weight_decay=0.1, foreach=True), AdamP(loop, 0.1, weight_decay=0.1, foreach=False)
    for step in range(6):
        for params, optimizer in ((ours, a), (loop, b)):
            give_gradients(params, step)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, loop, strict=True))


def test_blocks_of_rows_change_nothing(monkeypatch):
    def run(block):
        monkeypatch.setattr(projection, "_BLOCK", block)
        params = parameters(shapes=((50, 9), (9, 50)))
        optimizer = AdamP(params, 0.1)
        for step in range(4):
            give_gradients(params, step)
            optimizer.step()
        return [p.detach() for p in params]

    torch.testing.assert_close(run(64), run(10**6), rtol=1e-14, atol=0)


def test_never_projecting_is_adamw():
    ours, theirs = parameters(), parameters()
    a, b = AdamP(ours, 0.1, weight_decay=0.2, delta=0.0), torch.optim.AdamW(theirs, 0.1, weight_decay=0.2)
    c = AdamP(third := parameters(), 0.1, weight_decay=0.2, scale_invariant=False)
    for step in range(10):
        for params, optimizer in ((ours, a), (theirs, b), (third, c)):
            give_gradients(params, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(third, theirs, rtol=1e-12, atol=1e-12)


def test_a_projected_step_is_orthogonal_to_every_row():
    (w,) = parameters(shapes=((5, 7),))
    optimizer = AdamP([w], 0.1, weight_decay=0.5, wd_ratio=1.0)
    for step in range(6):
        before = w.detach().clone()
        give_gradients([w], step, "channel")
        optimizer.step()
        moved = w.detach() - before * (1 - 0.1 * 0.5)
        assert (before * moved).sum(1).abs().max() < 1e-7  # eps in the denominator


def test_the_norm_grows_by_the_step_alone():
    (w,) = parameters(shapes=((1, 9),))
    optimizer = AdamP([w], 0.05)
    for step in range(50):
        before = w.detach().clone()
        give_gradients([w], step, "channel")
        optimizer.step()
        grown = w.detach().square().sum() - before.square().sum()
        torch.testing.assert_close(grown, (w.detach() - before).square().sum(), rtol=1e-6, atol=1e-9)


def test_channels_come_before_the_layer_and_vectors_are_never_projected():
    w, bias = parameters(shapes=((4, 3), (4,)))
    optimizer = AdamP([w, bias], 0.1)
    before, start = w.detach().clone(), bias.detach().clone()
    w.grad = tangent(before, torch.randn(4, 3, dtype=torch.float64), True)
    bias.grad = tangent(start[None], torch.randn(1, 4, dtype=torch.float64), True)[0]
    optimizer.step()
    assert ((w.detach() - before) * before).sum(1).abs().max() < 1e-8
    want = start - 0.1 * bias.grad.sign()
    torch.testing.assert_close(bias.detach(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["channel", "layer", True])
def test_a_group_can_say_what_the_test_would_not_find(kind):
    (w,) = parameters(shapes=((4, 3),))
    optimizer = AdamP([{"params": [w], "scale_invariant": kind}], 0.1)
    before = w.detach().clone()
    w.grad = before + 0.1  # nearly parallel to the weight
    optimizer.step()
    products = ((w.detach() - before) * before).sum(1)
    assert abs(float(products.sum())) < 1e-7
    assert bool(products.abs().max() < 1e-7) == (kind == "channel")


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_scaled_weights_with_a_scaled_rate_move_alike(scale):
    small, large = parameters(shapes=((5, 7),)), parameters(shapes=((5, 7),))
    large[0].data *= scale
    a, b = AdamP(small, 0.1, eps=1e-30), AdamP(large, 0.1 * scale, eps=1e-30)
    for step in range(8):
        give_gradients(small, step, "channel")
        large[0].grad = small[0].grad / scale
        a.step()
        b.step()
    torch.testing.assert_close(large[0].detach(), scale * small[0].detach(), rtol=1e-10, atol=0)


def test_zero_gradient_leaves_a_tangential_momentum():
    (w,) = parameters(shapes=((2, 3),))
    optimizer = AdamP([w], 0.1)
    w.grad = torch.ones_like(w)
    optimizer.step()
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    optimizer.step()
    moved = w.detach() - before
    assert moved.abs().max() > 1e-3
    assert (moved * before).sum(1).abs().max() < 1e-7


def test_layouts_of_weight_and_gradient_may_differ():
    shape = (4, 3, 5, 5)
    plain, last = parameters(shapes=(shape,)), parameters(shapes=(shape,))
    last[0].data = last[0].data.contiguous(memory_format=torch.channels_last)
    a, b = AdamP(plain, 0.1), AdamP(last, 0.1)
    for step in range(3):
        give_gradients(plain, step, "channel")
        last[0].grad = plain[0].grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(plain, last, rtol=1e-12, atol=1e-12, check_stride=False)


def test_low_precision_follows_the_same_path():
    half = parameters(dtype=torch.bfloat16)
    full = [nn.Parameter(p.detach().float()) for p in half]
    a, b = AdamP(half, 0.03), AdamP(full, 0.03)
    for step in range(5):
        give_gradients(half, step, "plain")
        for p, q in zip(half, full, strict=True):
            q.grad = p.grad.float()
        a.step()
        b.step()
    for p, q in zip(half, full, strict=True):
        torch.testing.assert_close(p.float(), q, rtol=0.05, atol=0.03)


def test_a_rate_that_is_a_tensor():
    ours, theirs = parameters(), parameters()
    a, b = AdamP(ours, torch.tensor(0.1, dtype=torch.float64), weight_decay=0.1), AdamP(theirs, 0.1, weight_decay=0.1)
    for step in range(3):
        for params, optimizer in ((ours, a), (theirs, b)):
            give_gradients(params, step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_goes_on_from_the_state_of_torch_adamw():
    ours, theirs = parameters(), parameters()
    b = torch.optim.AdamW(theirs, 0.05, weight_decay=0.1)
    for step in range(3):
        give_gradients(theirs, step)
        b.step()
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    a = AdamP(ours, delta=0.0)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    for params, optimizer in ((ours, a), (theirs, b)):
        give_gradients(params, 3)
        optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_empty_and_missing_gradients_are_passed_over():
    empty, idle, w = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    optimizer = AdamP([empty, idle, w], 0.1)
    empty.grad, w.grad = torch.zeros(0, 3), torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    optimizer.step()
    assert torch.equal(idle, torch.ones(2))
    assert torch.isfinite(w).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative"),
        ({"betas": (1.0, 0.9)}, "betas must lie in"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"delta": -0.1}, "delta must not be negative"),
        ({"wd_ratio": 1.5}, "wd_ratio must lie in"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"scale_invariant": "rows"}, "scale_invariant must be one of"),
        ({"foreach": True, "fused": True}, "exclude each other"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamP(parameters(), **settings)
