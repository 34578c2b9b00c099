"""skip_bad_batches: which steps are left out, and that they leave nothing behind."""

import collections
import itertools

import pytest
import torch
from torch.optim import SGD, AdamW

from poise.doctor.remedies import parse_remedy

from .helpers import gradients, parameters, train, treated


def losses(values):
    return iter([None if v is None else torch.tensor(v) for v in values])


def usual(steps, level=1.0):
    """A quiet loss: level times 0.99, 1.00, 1.01, over and over."""
    return [level * x for x in itertools.islice(itertools.cycle([0.99, 1.0, 1.01]), steps)]


def steps_left_out(remedy, values):
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = SGD([p], lr=0.1)
    out = []
    for t, value in enumerate(values):
        p.grad = torch.ones_like(p)
        before = remedy.skipped
        remedy.before_step(optimizer, None if value is None else torch.tensor(value))
        optimizer.step()
        remedy.after_step(optimizer)
        if remedy.skipped > before:
            out.append(t)
    return out


def test_a_left_out_step_is_as_if_it_had_never_been():
    scale = [1.0] * 12 + [1e3] + [1.0] * 7
    values = [*usual(12), 9.0, *usual(7)]
    remedy = parse_remedy("skip_bad_batches")
    with treated(remedy, losses=losses(values)):
        ours, _, optimizer = train(lambda ps: AdamW(ps, 0.1), 20, scale=scale)
    ps = parameters()
    reference = AdamW(ps, 0.1)
    for t, gs in enumerate(gradients(20, scale=scale)):
        if t == 12:
            continue
        for p, g in zip(ps, gs, strict=True):
            p.grad = g
        reference.step()
    assert remedy.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(ours, ps, strict=True))
    assert all(p.grad is not None for p in ours)
    assert float(optimizer.state[ours[0]]["step"]) == 19


def test_the_threshold_is_the_robust_z_score():
    # Window 0.99, 1, 1.01 x 10: median 1, MAD 0.01, so z = (l - 1) / (0.014826 + 0.001); z = 8 is at 1.1266.
    for rise, out in ((0.126, []), (0.127, [30])):
        assert steps_left_out(parse_remedy("skip_bad_batches=8"), [*usual(30), 1.0 + rise]) == out
    # z of 30 is no reason while the loss is within 5 % of the median.
    assert steps_left_out(parse_remedy("skip_bad_batches=8"), [*[1.0] * 30, 1.049]) == []
    assert steps_left_out(parse_remedy("skip_bad_batches=8"), [*[1.0] * 30, 1.051]) == [30]


def test_a_low_loss_is_no_reason_and_the_first_losses_are_only_collected():
    assert steps_left_out(parse_remedy("skip_bad_batches"), [*usual(30), 0.01]) == []
    assert steps_left_out(parse_remedy("skip_bad_batches"), [*usual(9), 50.0]) == []
    assert steps_left_out(parse_remedy("skip_bad_batches"), [*usual(10), 50.0]) == [10]


def test_a_lasting_new_level_is_accepted_in_the_end():
    out = steps_left_out(parse_remedy("skip_bad_batches"), [*usual(50), *usual(60, level=10.0)])
    assert out[0] == 50
    assert 20 <= len(out) <= 26


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_losses_are_left_out_from_the_first_step_on(bad):
    assert steps_left_out(parse_remedy("skip_bad_batches"), [bad, *usual(20), bad, 1.0]) == [0, 21]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradients_are_left_out_even_where_no_loss_was_seen(bad):
    a, b = parameters()
    remedy = parse_remedy("skip_bad_batches")
    start = [a.detach().clone(), b.detach().clone()]
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    b.grad[1] = bad
    with treated(remedy):
        SGD([a, b], lr=0.1, weight_decay=0.1).step()
    assert remedy.skipped == 1
    assert torch.equal(a, start[0])
    assert torch.equal(b, start[1])
    assert b.grad[1].item() == pytest.approx(bad, nan_ok=True)


def test_large_finite_gradients_are_finite():
    (p,) = parameters()[:1]
    p = torch.nn.Parameter(p.detach().float())
    p.grad = torch.full_like(p, 1e30)  # whose Euclidean norm overflows float32
    remedy = parse_remedy("skip_bad_batches")
    with treated(remedy):
        SGD([p], lr=1e-30).step()
    assert remedy.skipped == 0


def test_optimizers_are_judged_by_their_own_losses():
    remedy = parse_remedy("skip_bad_batches")
    a, b = parameters()
    optimizers = SGD([a], lr=0.1), SGD([b], lr=0.1)
    for t in range(40):
        for optimizer, level in zip(optimizers, (1.0, 20.0), strict=True):
            remedy.before_step(optimizer, torch.tensor(level * usual(40)[t]))
            remedy.after_step(optimizer)
    assert remedy.skipped == 0


def test_composes_with_clipping_on_either_side():
    values = [*usual(12), 9.0, *usual(7)]
    results = []
    order = ("clip_grad_norm=1", "clip_update_rms", "skip_bad_batches")
    for specs in (order, order[::-1]):
        with treated(*map(parse_remedy, specs), losses=losses(values)):
            results.append(train(lambda ps: AdamW(ps, 0.1), 20)[0])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_its_code_leaves_out_the_same_steps():
    values = [float("nan"), *usual(12), 1.127, 9.0, 1.0, float("inf"), *usual(50, 3.0)]
    remedy = parse_remedy("skip_bad_batches")
    ours = steps_left_out(remedy, values)
    once, _, loop = remedy.code().partition("# in the loop")
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    space = {"torch": torch, "collections": collections, "model": torch.nn.ParameterList([p])}
    exec(once, space)
    theirs = [t for t, v in enumerate(values) if space["is_bad"](torch.tensor(v))]
    assert len(ours) > 4
    assert theirs == ours
    assert "is_bad(loss.detach())" in loop
