"""Remedies against growing scales: ortho_grad, stablemax, tangential_updates, ema."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW

from poise.doctor.remedies import parse_remedy
from poise.losses import stablemax_cross_entropy
from poise.optim import SGDP, AdamP
from poise.optim import OrthoGrad as Wrapper

from .helpers import assert_same, gradients, parameters, permanent, train, treated


def sgd(ps):
    return SGD(ps, lr=0.1, momentum=0.9)


def adam(ps):
    return Adam(ps, lr=0.1)


# ---- ortho_grad


@pytest.mark.parametrize("make", [sgd, adam])
def test_ortho_grad_is_the_wrapper_and_its_code(make):
    remedy = parse_remedy("ortho_grad")
    with treated(remedy):
        ours, _, _ = train(make)
    wrapped, _, _ = train(lambda ps: Wrapper(make(ps)))
    assert_same(ours, wrapped)
    _, before = permanent(remedy.code())

    def step(optimizer):
        before(optimizer)
        optimizer.step()

    written, _, _ = train(make, step=step)
    assert_same(ours, written)


@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_ortho_grad_takes_its_share_and_keeps_the_norm(share, seed):
    ps, (gs, *_) = parameters(seed), gradients(1, seed + 1)
    for p, g in zip(ps, gs, strict=True):
        p.grad = g.clone()
    parse_remedy(f"ortho_grad={share}").before_step(sgd(ps), None)
    for p, g in zip(ps, gs, strict=True):
        along = (p * g).sum() / p.square().sum()
        left = g - share * along * p
        torch.testing.assert_close(p.grad, left.detach() * (g.norm() / left.detach().norm()), rtol=1e-9, atol=1e-12)


def test_ortho_grad_of_a_gradient_along_its_weight_is_zero_and_numbers_stay_alone():
    w, one = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.ones(1))
    w.grad, one.grad = 3 * w.detach(), torch.ones(1)
    parse_remedy("ortho_grad").before_step(sgd([w, one]), None)
    assert torch.count_nonzero(w.grad) == 0
    assert one.grad == 1


# ---- stablemax


def logits(*shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


TARGETS = {
    "indices": (logits(6, 5), torch.tensor([0, 4, -100, 2, 2, 1]), {}),
    "class dimension is 1": (logits(2, 5, 3), torch.tensor([[0, 4, -100], [1, 2, 3]]), {}),
    "no batch": (logits(5), torch.tensor(3), {}),
    "probabilities": (logits(4, 5), torch.softmax(logits(4, 5, seed=1).detach(), 1), {}),
    "weights and smoothing": (
        logits(6, 5),
        torch.tensor([0, 4, -100, 2, 2, 1]),
        {"weight": torch.arange(1, 6).double(), "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", TARGETS)
def test_the_gradient_is_that_of_stablemax_and_the_number_is_not(case, reduction, share):
    input, target, kwargs = TARGETS[case]
    ours = parse_remedy(f"stablemax={share}").cross_entropy(
        F.cross_entropy, input, target, reduction=reduction, **kwargs
    )
    plain = F.cross_entropy(input, target, reduction=reduction, **kwargs)
    other = stablemax_cross_entropy(input, target, reduction=reduction, **kwargs)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)  # what the script prints, and a trial compares
    expected = torch.autograd.grad((share * other + (1 - share) * plain).sum(), input)[0]
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), input)[0], expected, rtol=1e-9, atol=1e-12)


def test_stablemax_learns_from_samples_that_the_softmax_has_given_up():
    input = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([0])
    assert torch.autograd.grad(F.cross_entropy(input, target), input)[0][0, 0] == 0
    ours = parse_remedy("stablemax").cross_entropy(F.cross_entropy, input, target)
    assert ours == 0
    gradient = torch.autograd.grad(ours, input)[0]
    # The right class: s'/S - 1/s with s(40) = 41 and S = 43.
    assert gradient[0, 0].item() == pytest.approx(1 / 43 - 1 / 41, rel=1e-5)


def test_stablemax_takes_half_precision_and_leaves_evaluation_alone():
    input, target, _ = TARGETS["indices"]
    half = input.detach().bfloat16().requires_grad_()
    remedy = parse_remedy("stablemax")
    weight = torch.ones(5).bfloat16()
    loss = remedy.cross_entropy(F.cross_entropy, half, target, weight=weight)
    assert loss.dtype == F.cross_entropy(half, target).dtype
    assert torch.isfinite(torch.autograd.grad(loss, half)[0]).all()
    with torch.no_grad():
        assert torch.equal(remedy.cross_entropy(F.cross_entropy, input, target), F.cross_entropy(input, target))


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_code_of_stablemax_has_the_same_gradient(share):
    input, target, _ = TARGETS["indices"]
    remedy = parse_remedy(f"stablemax={share}")
    _, loop = permanent(remedy.code())
    loss = loop(None, F=F, logits=input, targets=target)["loss"]
    ours = remedy.cross_entropy(F.cross_entropy, input, target)
    torch.testing.assert_close(
        torch.autograd.grad(loss, input)[0], torch.autograd.grad(ours, input)[0], rtol=1e-9, atol=1e-12
    )


def test_stablemax_acts_in_a_watched_run_and_the_recorded_loss_is_plain(watching):
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(4, 3), torch.randn(16, 4), torch.randint(3, (16,))
    optimizer = SGD(model.parameters(), lr=0.1)
    with watching(remedies=[parse_remedy("stablemax")]) as watched:
        for _ in range(5):
            weight = model.weight.detach().clone().requires_grad_()
            bias = model.bias.detach().clone()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            expected = torch.autograd.grad(stablemax_cross_entropy(F.linear(x, weight, bias), y), weight)[0]
            torch.testing.assert_close(model.weight.grad, expected)
            scores = F.linear(x, weight.detach(), bias)
            plain = float((torch.logsumexp(scores, 1) - scores[torch.arange(16), y]).mean())
            optimizer.step()
    assert watched.tap.fault is None
    assert watched["loss"].values[-1] == pytest.approx(plain, rel=1e-5)


# ---- tangential_updates


def invariant(ps):
    """Gradients of a function of the directions of the rows: orthogonal to them."""
    w = ps[0]
    goal = torch.linspace(-1, 1, w.numel(), dtype=w.dtype).view_as(w)
    ((w / w.norm(dim=1, keepdim=True) - goal).square().sum() + ps[1].square().sum()).backward()


def trained(make, remedy=None, step=None, steps=20):
    ps = parameters()
    optimizer = make(ps)
    with treated(*([remedy] if remedy else [])):
        for _ in range(steps):
            optimizer.zero_grad()
            invariant(ps)
            (step or type(optimizer).step)(optimizer)
    return ps


@pytest.mark.parametrize(
    ("plain", "projected"),
    [
        (sgd, lambda ps: SGDP(ps, lr=0.1, momentum=0.9)),
        (lambda ps: AdamW(ps, lr=0.1, weight_decay=0.0), lambda ps: AdamP(ps, lr=0.1)),
        (
            lambda ps: AdamW(ps, lr=0.1, weight_decay=0.2),
            lambda ps: AdamP(ps, lr=0.1, weight_decay=0.2, wd_ratio=1.0),
        ),
    ],
)
def test_tangential_updates_are_those_of_adamp_and_sgdp(plain, projected):
    ours = trained(plain, parse_remedy("tangential_updates"))
    assert_same(ours, trained(projected), 1e-6)  # their norm has an eps of 1e-8


@pytest.mark.parametrize("make", [sgd, lambda ps: AdamW(ps, lr=0.1, weight_decay=0.2)])
def test_the_code_of_tangential_updates_does_the_same(make):
    remedy = parse_remedy("tangential_updates")
    once, loop = permanent(remedy.code())
    once(None)

    assert_same(trained(make, remedy), trained(make, step=lambda optimizer: loop(optimizer)))


def test_the_norm_grows_by_the_squares_of_the_steps_alone():
    def growth(remedy):
        return float(trained(sgd, remedy)[0].norm() / parameters()[0].norm())

    assert growth(parse_remedy("tangential_updates")) < growth(None)


def test_weights_that_are_not_invariant_step_as_before():
    with treated(parse_remedy("tangential_updates=1e-9")):
        ours, _, _ = train(sgd)
    theirs, _, _ = train(sgd)
    assert_same(ours, theirs, 0)


# ---- ema


@pytest.mark.parametrize("decay", [0.75, 0.0, 0.9])
def test_ema_is_its_definition_and_its_code(decay):
    remedy = parse_remedy(f"ema={decay}")
    with treated(remedy):
        ours, _, _ = train(sgd)
    once, loop = permanent(remedy.code())
    started = []

    def step(optimizer):
        if not started:
            started.append(once(optimizer))
        optimizer.step()
        loop(optimizer)

    written, _, _ = train(sgd, step=step)
    assert_same(ours, written)
    by_hand = parameters()
    optimizer, average = sgd(by_hand), [p.detach().clone() for p in by_hand]
    for t, gs in enumerate(gradients(12)):
        for p, g in zip(by_hand, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, by_hand, strict=True)]
        if (t + 1) % round(1 / (1 - decay)) == 0:
            for a, p in zip(average, by_hand, strict=True):
                p.data.copy_(a)
    assert_same(ours, by_hand)


def test_the_average_of_bfloat16_weights_moves_in_float32():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer, remedy = SGD([p], lr=0.0), parse_remedy("ema=0.99")
    with treated(remedy):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        p.data.fill_(2.0)
        for _ in range(60):
            optimizer.step()
    value = remedy._averages[optimizer].values[0]
    assert value.dtype == torch.float32
    assert value[0].item() == pytest.approx(2 - 0.99**60, rel=1e-5)
    assert math.isclose(float(p[0]), 2.0)  # no switch yet


@pytest.mark.parametrize("spec", ["ortho_grad=1.1", "ortho_grad=0", "stablemax=2", "ema=1", "tangential_updates=0"])
def test_values_out_of_range(spec):
    with pytest.raises(ValueError, match=r"must be a number (above 0|of at least 0)"):
        parse_remedy(spec)
    assert "at most 1" in str(parse_remedy("ortho_grad").values)
