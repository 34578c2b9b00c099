import copy
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from poise.optim import (
    CurvatureWarmup,
    MatchEffectiveLR,
    OneCycle,
    OneCycleAsRun,
    TwoPhaseLR,
    WarmupCosineLR,
    group_effective_lr,
    weight_norm,
)


def sgd(lr=0.1, momentum=0.9, **group):
    return torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=lr, momentum=momentum, **group)


def trace(optimizer, schedule, steps):
    """Learning rate and momentum before each of the steps."""
    values = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        values.append((float(group["lr"]), group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        schedule.step()
    return values


def test_one_cycle_as_run_gives_the_logged_values():
    optimizer = sgd()
    values = trace(optimizer, OneCycleAsRun(optimizer, max_lr=1.2, total_steps=7080, half=3417), 7080)
    logged = {100: 0.132192, 1000: 0.42192, 4100: 0.96014, 5000: 0.644074, 6800: 0.0119403, 6900: 0.0001}
    for step, lr in logged.items():
        assert values[step][0] == pytest.approx(lr, rel=1e-5)
    assert values[1000][1] == pytest.approx(0.920735, abs=1e-6)
    assert values[4100][1] == pytest.approx(0.869988, abs=1e-6)
    assert values[7000][1] == pytest.approx(0.947571, abs=1e-6)


@pytest.mark.parametrize("anneal", ["linear", "cos"])
def test_one_cycle_meets_its_corners_and_is_continuous(anneal):
    optimizer = sgd()
    schedule = OneCycle(optimizer, 1.0, 1000, base_div=10, final_div=1000, anneal=anneal)
    values = trace(optimizer, schedule, 1001)
    lrs = [lr for lr, _ in values]
    assert lrs[0] == pytest.approx(0.1)
    assert lrs[450] == max(lrs) == pytest.approx(1.0)
    assert lrs[900] == pytest.approx(0.1)
    assert lrs[1000] == pytest.approx(0.1 / 1000)
    assert max(abs(b - a) for a, b in itertools.pairwise(lrs)) < 0.004
    momenta = [m for _, m in values]
    assert min(momenta) == pytest.approx(0.85)
    assert max(momenta) <= 0.95 + 1e-12
    assert momenta[450 - 100] == pytest.approx(momenta[450 + 100])
    assert momenta[950] == pytest.approx(0.95)


def test_three_linear_phases_of_torch_are_close_to_ours():
    steps = 1000
    ours, theirs = sgd(), sgd()
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 1.0, steps, pct_start=0.45, three_phase=True, anneal_strategy="linear", div_factor=10,
        final_div_factor=1000, max_momentum=0.95, base_momentum=0.85,
    )  # fmt: skip
    a, b = trace(ours, OneCycle(ours, 1.0, steps), 990), trace(theirs, reference, 990)
    worst = max(abs(x - y) for (x, _), (y, _) in zip(a, b, strict=True))
    assert worst < 3 * 0.9 / (0.45 * steps)  # its phases end up to two steps early
    assert worst > 0


def test_one_cycle_moves_the_first_beta_and_every_group_has_its_own_peak():
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], betas=(0.9, 0.99))
    schedule = OneCycle(optimizer, [0.1, 0.2], 10, up=0.5, down=0.5)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.2])
    assert [g["betas"] for g in optimizer.param_groups] == [(pytest.approx(0.85), 0.99)] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda o: OneCycle(o, 1.0, 40),
        lambda o: OneCycleAsRun(o, 1.0, 40),
        lambda o: TwoPhaseLR(o, 40, final_lr=1e-3, wd_factor=0.5),
        lambda o: WarmupCosineLR(o, 10, 40),
        lambda o: CurvatureWarmup(o, lambda: 0.05, 20),
        lambda o: MatchEffectiveLR(o, [0.1 / (t + 1) for t in range(60)], "sgd"),
    ],
)
def test_a_resumed_schedule_goes_on_as_if_never_stopped(make):
    optimizer = sgd(weight_decay=0.1)
    schedule = make(optimizer)
    trace(optimizer, schedule, 17)
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    rest = trace(optimizer, schedule, 20)
    other = sgd(weight_decay=0.1)
    resumed = make(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert trace(other, resumed, 20) == rest


def test_behind_the_last_step_the_value_stays_and_is_told_once():
    optimizer = sgd()
    schedule = OneCycle(optimizer, 1.0, 10)
    trace(optimizer, schedule, 10)
    with pytest.warns(UserWarning, match="all 10 steps are over"):
        schedule.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    strict = OneCycle(sgd(), 1.0, 4, strict=True)
    with pytest.raises(ValueError, match="total_steps=4 are over"):
        trace(sgd(), strict, 6)


@pytest.mark.parametrize("total", [4, 5, 7])
def test_short_cycles_divide_by_nothing(total):
    for up, down in [(0.5, 0.5), (0.3, 0.3), (0.9, 0.1)]:
        optimizer = sgd()
        values = trace(optimizer, OneCycle(optimizer, 1.0, total, up, down), total + 1)
        assert all(0 < lr <= 1 for lr, _ in values)


def test_warmup_cosine_at_the_published_points():
    optimizer = sgd(lr=6e-4)
    values = [lr for lr, _ in trace(optimizer, WarmupCosineLR(optimizer, 400, 50_000), 50_003)]
    assert values[0] == 0
    assert values[400] == pytest.approx(6e-4)
    assert values[50_000] == values[50_002] == pytest.approx(6e-5)
    assert values[400 + (50_000 - 400) // 2] == pytest.approx((6e-4 + 6e-5) / 2)


def test_two_phases():
    optimizer = sgd(lr=0.3, weight_decay=0.01)
    schedule = TwoPhaseLR(optimizer, 10, final_lr=0.003, wd_factor=0.0)
    assert [lr for lr, _ in trace(optimizer, schedule, 10)] == [0.3] * 5 + [0.003] * 5
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_curvature_warmup_holds_below_the_limit_and_goes_on_when_it_lifts():
    limits = iter([0.05, 0.05, 0.05, math.inf, math.inf, math.inf])
    optimizer = sgd(lr=0.1)
    schedule = CurvatureWarmup(optimizer, lambda: next(limits), warmup=20, headroom=0.8, every=10)
    lrs = [lr for lr, _ in trace(optimizer, schedule, 50)]
    assert lrs[0] == pytest.approx(0.005)
    assert max(lrs[:30]) == pytest.approx(0.04)
    assert lrs[-1] == pytest.approx(0.1)
    assert all(b >= a for a, b in itertools.pairwise(lrs))


@pytest.mark.parametrize("power_of", [("sgd", 2), ("adamw", 1), ("independent_adamw", 1), ("adam", 1)])
def test_effective_learning_rate_of_a_group(power_of):
    rule, power = power_of
    weights = [nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.tensor([8.0]))]  # joint norm 10
    optimizer = torch.optim.SGD(weights, lr=0.5)
    assert weight_norm(optimizer) == pytest.approx(10)
    assert group_effective_lr(optimizer, rule) == pytest.approx(0.5 / 10**power)
    schedule = MatchEffectiveLR(optimizer, [0.1, 0.2, 0.3], rule)
    optimizer.step()
    schedule.step()
    assert group_effective_lr(optimizer, rule) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="rule must be one of"):
        MatchEffectiveLR(optimizer, [0.1], "sgdm")


def test_sgd_without_decay_has_the_directions_of_sgd_with_decay():
    target = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def direction_after(optimizer):
        (w,) = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        (-torch.nn.functional.cosine_similarity(w, target, dim=0)).backward()
        optimizer.step()
        return (w / w.norm()).detach()

    def fresh(**group):
        w = nn.Parameter(torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64))
        return torch.optim.SGD([w], lr=1.0, **group)

    decayed, plain = fresh(weight_decay=0.2), fresh()
    recorded, directions, other_norms = [], [], []
    for _ in range(20):
        recorded.append(group_effective_lr(decayed, "sgd") / (1 - 1.0 * 0.2))
        directions.append(direction_after(decayed))
    schedule = MatchEffectiveLR(plain, recorded, "sgd")
    for t, expected in enumerate(directions):
        torch.testing.assert_close(
            direction_after(plain), expected, rtol=0, atol=1e-10
        )  # rounding grows by a factor at each step
        other_norms.append(weight_norm(plain))
        if t < 19:
            schedule.step()
    assert weight_norm(decayed) < 0.5 * other_norms[-1]  # although the weights themselves went apart
    with pytest.raises(IndexError, match="trace has 20 steps"):
        schedule.step()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="total_steps must be at least 4"):
        OneCycle(sgd(), 1.0, 3)
    with pytest.raises(ValueError, match="up and down must be positive"):
        OneCycle(sgd(), 1.0, 10, up=0.6, down=0.6)
    with pytest.raises(ValueError, match="pass momentum=None"):
        OneCycle(torch.optim.Adagrad([nn.Parameter(torch.ones(1))]), 1.0, 10)
    with pytest.raises(ValueError, match="max_lr must be positive"):
        OneCycle(sgd(), [0.1, 0.2], 10)
    with pytest.raises(ValueError, match="momentum must be"):
        OneCycle(sgd(), 0.1, 10, momentum=(0.8, 0.9))
    with pytest.raises(ValueError, match="half must lie"):
        OneCycleAsRun(sgd(), 0.1, 10, half=11)
    with pytest.raises(ValueError, match="first_decay must lie"):
        TwoPhaseLR(sgd(), 10, first_decay=0)
    with pytest.raises(ValueError, match="final_lr must be positive"):
        TwoPhaseLR(sgd(), 10, final_lr=1.0)
    with pytest.raises(ValueError, match="warmup must lie"):
        WarmupCosineLR(sgd(), 10, 10)
    with pytest.raises(ValueError, match="sharpness_limit must return"):
        CurvatureWarmup(sgd(), lambda: -1.0, 10)
