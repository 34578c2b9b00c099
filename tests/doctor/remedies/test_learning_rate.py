"""lr_scale and warmup: what is stepped with, and what the script sees."""

import pytest
import torch
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from poise.doctor.remedies import parse_remedy

from .helpers import assert_same, parameters, permanent, train, treated


def adamw(ps):
    return AdamW(ps, lr=0.1, weight_decay=0.1)


def sgd(ps):
    return SGD([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.02}], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("scheduler", [None, lambda o: StepLR(o, 3, 0.5), lambda o: CosineAnnealingLR(o, 10)])
@pytest.mark.parametrize("make", [adamw, sgd])
def test_lr_scale_equals_a_smaller_lr_in_the_script(make, scheduler):
    remedy = parse_remedy("lr_scale=0.3")
    _, plain_lrs, _ = train(make, scheduler=scheduler)
    with treated(remedy):
        ours, lrs, _ = train(make, scheduler=scheduler)
    once, _ = permanent(remedy.code())

    def smaller(ps):
        optimizer = make(ps)
        once(optimizer)
        return optimizer

    theirs, _, _ = train(smaller, scheduler=scheduler)
    assert_same(ours, theirs)
    assert lrs == plain_lrs  # to the last bit: the script never sees the remedy


def test_lr_scale_one_is_bit_identical_to_no_remedy():
    plain, _, _ = train(adamw)
    with treated(parse_remedy("lr_scale=1")):
        ours, _, _ = train(adamw)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_tensor_lr_shared_by_groups_is_scaled_once_and_keeps_its_identity():
    lr = torch.tensor(0.1, dtype=torch.float64)

    def make(ps):
        return SGD([{"params": ps[:1], "lr": lr}, {"params": ps[1:], "lr": lr}], lr=lr, foreach=False)

    with treated(parse_remedy("lr_scale=0.25")):
        ours, _, optimizer = train(make)
    theirs, _, _ = train(lambda ps: SGD(ps, lr=0.025))
    assert_same(ours, theirs)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert lr.item() == 0.1


def test_manual_changes_of_the_lr_by_the_script_are_kept():
    def halve(optimizer):
        optimizer.param_groups[0]["lr"] *= 0.5

    with treated(parse_remedy("lr_scale=0.3")):
        _, lrs, _ = train(adamw, 3, every_step=halve)
    assert [r[0] for r in lrs] == [0.05, 0.025, 0.0125]


def test_an_lr_that_the_script_sets_inside_the_step_stays():
    ps = parameters()
    optimizer = LBFGS(ps, lr=0.1)

    def closure():
        optimizer.param_groups[0]["lr"] = 0.07
        return torch.zeros(())

    for p in ps:
        p.grad = torch.zeros_like(p)
    with treated(parse_remedy("lr_scale=0.3")):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 0.07


def test_a_step_that_raises_leaves_no_trace_in_the_next_one():
    remedy = parse_remedy("lr_scale=0.5")
    (p,) = parameters()[:1]
    optimizer = SGD([p], lr=0.1)
    p.grad = torch.ones_like(p)
    start = p.detach().clone()

    def fail():
        raise OSError("out of something")

    with treated(remedy):
        with pytest.raises(OSError, match="out of"):
            optimizer.step(fail)
        optimizer.step()
    torch.testing.assert_close(start - p, torch.full_like(p, 0.05))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_around_another_one_is_scaled_once():
    class Outer(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, inner.defaults)
            self.param_groups = inner.param_groups

        def step(self, closure=None):
            self.inner.step()

    (p,) = parameters()[:1]
    outer = Outer(SGD([p], lr=0.1))
    p.grad = torch.ones_like(p)
    start = p.detach().clone()
    with treated(parse_remedy("lr_scale=0.5")):
        outer.step()
    torch.testing.assert_close(start - p, torch.full_like(p, 0.05))
    assert outer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("scheduler", [None, lambda o: OneCycleLR(o, 0.2, total_steps=20)])
def test_warmup_equals_the_scheduler_in_its_code(steps, scheduler):
    remedy = parse_remedy(f"warmup={steps}")
    with treated(remedy):
        ours, _, _ = train(adamw)
    once, after = permanent(remedy.code())

    def make(ps):
        optimizer = adamw(ps)
        once(optimizer)
        return optimizer

    def step(optimizer):
        optimizer.step()
        after(optimizer)

    theirs, _, _ = train(make, step=step)
    assert_same(ours, theirs)
    with treated(parse_remedy(f"warmup={steps}")):
        _, lrs, _ = train(adamw, scheduler=scheduler)
    assert lrs == train(adamw, scheduler=scheduler)[1]


def test_warmup_factors_in_closed_form_for_each_optimizer_on_its_own():
    remedy = parse_remedy("warmup=4")
    (a, b) = parameters()
    first, second = SGD([a], lr=1.0), SGD([b], lr=1.0)
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    lengths = {"a": [], "b": []}
    with treated(remedy):
        for t in range(6):
            for name, p, optimizer in (("a", a, first), ("b", b, second)):
                if name == "b" and t % 2:
                    continue
                start = p.detach().clone()
                optimizer.step()
                lengths[name].append(round((start - p).mean().item(), 12))
    assert lengths["a"] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lengths["b"] == [0.25, 0.5, 0.75]


def test_lr_scale_and_warmup_multiply_and_both_are_undone():
    with treated(parse_remedy("lr_scale=0.5"), parse_remedy("warmup=3")):
        ours, lrs, _ = train(sgd, 8)
    factors = iter([0.5 / 3, 1.0 / 3, *[0.5] * 6])

    def by_hand(optimizer):
        keep = [group["lr"] for group in optimizer.param_groups]
        factor = next(factors)
        for group in optimizer.param_groups:
            group["lr"] *= factor
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, keep, strict=True):
            group["lr"] = lr

    theirs, _, _ = train(sgd, 8, step=by_hand)
    assert_same(ours, theirs)
    assert lrs == [[0.1, 0.02]] * 8


def test_lr_scale_acts_on_lbfgs():
    def solve(lr):
        p = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        optimizer = LBFGS([p], lr=lr, max_iter=1)

        def closure():
            optimizer.zero_grad()
            loss = (p**2).sum() / 2
            loss.backward()
            return loss

        optimizer.step(closure)
        return p.detach()

    with treated(parse_remedy("lr_scale=0.25")):
        ours = solve(1.0)
    torch.testing.assert_close(ours, solve(0.25))


def test_an_optimizer_without_lr_is_noted():
    remedy = parse_remedy("lr_scale=0.25")
    (p,) = parameters()[:1]
    optimizer = Adam([p])
    optimizer.param_groups[0]["lr"] = None  # as Hugging Face's Adafactor has it
    remedy.before_step(optimizer, None)
    remedy.after_step(optimizer)
    assert remedy.notes == ["Adam has no learning rate to scale"]
    assert optimizer.param_groups[0]["lr"] is None
