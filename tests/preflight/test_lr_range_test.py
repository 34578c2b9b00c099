import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from poise.data import load_digits
from poise.optim import SAM
from poise.preflight import LRRangeCurve, NoSuggestion, lr_range_test
from poise.preflight.range_test.lr_suggestion import RULES, divergence_lr, smooth, suggest_lr

LRS = np.geomspace(1e-6, 10, 100)


def curve(losses, stopped_at=None, smoothing=0.9, val=None):
    losses = np.asarray(losses, dtype=float)
    return LRRangeCurve(LRS[: len(losses)], losses, val, smoothing, stopped_at, 10.0)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))


def quadratic_test(curvature, **kwargs):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return lr_range_test(model, lambda m, _: 0.5 * curvature * m.w.square().sum(), [0], optimizer, **kwargs)


def digits(batch=64, generator=None):
    data = load_digits()
    pairs = TensorDataset(data.inputs[:800] / 16, data.targets[:800])
    held_out = data.inputs[800:1000] / 16, data.targets[800:1000]
    return DataLoader(pairs, batch, shuffle=True, generator=generator), held_out


def network(norm=False):
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(32) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(64, 32), middle, nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


def test_model_optimizer_generators_and_buffers_stay_bit_identical():
    generator = torch.Generator().manual_seed(1)
    loader, held_out = digits(generator=generator)
    model = network(norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    F.cross_entropy(model(held_out[0]), held_out[1]).backward()
    optimizer.step()
    model[1].eval()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), generator.get_state()  # noqa: NPY002
    lr_range_test(model, nn.CrossEntropyLoss(), loader, optimizer, val_batch=held_out, weight_decays=(0.0, 0.1))
    after = model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(generator.get_state(), states[3])


def test_everything_is_restored_when_the_loss_raises():
    model, (loader, _) = network(), digits()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("no more")
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(RuntimeError, match="no more"):
        lr_range_test(model, loss, loader)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


@given(curvature=st.floats(3, 1e3))
@settings(max_examples=20, deadline=None)
def test_divergence_on_a_quadratic_is_found_within_one_step_of_the_grid(curvature):
    test = quadratic_test(curvature)
    ratio = LRS[1] / LRS[0]
    found = divergence_lr(test.curves[0])
    assert 1 / (ratio * 1.001) <= found / (2 / curvature) <= ratio * 1.001
    assert test.suggest("divergence/3").lr_max == pytest.approx(found / 3)
    assert test.suggest("divergence/3").lr_min == pytest.approx(found / 30)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("curvature", [5.0, 50.0, 200.0])
def test_divergence_with_momentum_is_found_although_the_loss_swings(momentum, curvature):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
    test = lr_range_test(
        model, lambda m, _: 0.5 * curvature * m.w.square().sum(), [0], optimizer, 1e-4, 10.0, num_steps=120
    )
    edge, ratio = 2 * (1 + momentum) / curvature, (10 / 1e-4) ** (1 / 119)
    # A swing may still fall after the edge or rise before it: three steps of the grid, which rises all the while.
    assert ratio**-3.01 <= divergence_lr(test.curves[0]) / edge <= ratio**3.01


@pytest.mark.parametrize("constant", [-100.0, -2.3, -0.5, 0.3, 0.6, 1000.0])
def test_a_constant_added_to_the_loss_changes_no_answer(constant):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, generator=generator, dtype=torch.float64)
    y = F.normalize(x + torch.tensor([0.0, 0.5, 0.0]), dim=1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    batches = list(zip(x.split(16), y.split(16), strict=True))

    def tested(added):
        def loss(m, batch):
            return added - F.cosine_similarity(m(batch[0]), batch[1]).mean()

        return lr_range_test(model, loss, batches, lo=1e-4, hi=1e3, num_steps=80, weight_decays=(0.0, 0.01))

    plain, moved = tested(0.0), tested(constant)
    for ours, other in zip(plain.curves, moved.curves, strict=True):
        assert (len(ours.lrs), ours.stopped_at, ours.zones) == (len(other.lrs), other.stopped_at, other.zones)
        np.testing.assert_allclose(other.smoothed - constant, ours.smoothed, atol=1e-9)
        for rule in RULES:
            found = []
            for each in (ours, other):
                try:
                    found.append(suggest_lr(each, rule).lr_max)
                except NoSuggestion as reason:
                    found.append(str(reason))
            assert found[0] == found[1] or found[0] == pytest.approx(found[1], rel=1e-9)
    assert plain.best_curve().weight_decay == moved.best_curve().weight_decay


@pytest.mark.parametrize("sign", [1, -1])
def test_a_run_ends_when_the_loss_has_lost_what_it_had_won(sign):
    # The loss is w^2 - 1 or w^2 + 1: positive, negative and across zero it is the same run.
    model = Quadratic()
    tests = [
        lr_range_test(
            model, lambda m, _: m.w.square().sum() + sign, [0], torch.optim.SGD(model.parameters(), 1.0), stop_factor=f
        )
        for f in (1, 100)
    ]
    short, long = (test.curves[0] for test in tests)
    assert short.smoothed[:-1].max() <= sign + 1 + 1e-9 < short.smoothed[-1] < long.smoothed[-1]
    assert short.stopped_at < long.stopped_at


def test_the_recorded_losses_are_those_of_gradient_descent():
    test, w, losses = quadratic_test(3.0, lo=1e-2, hi=1.0, num_steps=20, mode="linear"), 1.0, []
    for lr in np.linspace(1e-2, 1.0, 20):
        losses.append(1.5 * w**2)
        w -= lr * 3 * w
    kept = len(test.curves[0].train)
    np.testing.assert_allclose(test.curves[0].train, losses[:kept], rtol=1e-12)


def test_smoothing_starts_from_the_first_loss_and_leaves_a_constant_alone():
    values = np.array([5.0, 1.0, 3.0])
    assert smooth(values, 0.9)[0] == 5.0
    assert smooth(values, 0.5)[1] == pytest.approx((0.25 * 5 + 0.5 * 1) / 0.75)
    np.testing.assert_allclose(smooth(np.full(50, 2.3), 0.98), 2.3)
    np.testing.assert_array_equal(smooth(values, 0.0), values)
    assert curve(values).smoothed[0] == 5.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("losses", [np.linspace(3, 1, 100), np.linspace(1, 2, 100), np.full(100, 2.3)])
def test_a_monotone_curve_gives_no_suggestion(rule, losses):
    with pytest.raises(NoSuggestion, match=r"still falling|never fell"):
        suggest_lr(curve(losses), rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_curve_with_a_valley_gives_a_learning_rate_inside_it(rule):
    x = np.linspace(-1, 1, 90)
    losses = np.where(x < 0.5, 2.3 - 2 / (1 + np.exp(-12 * x)), 0.3 + 20 * (x - 0.5) ** 2)
    found = suggest_lr(curve(losses, stopped_at=LRS[90], smoothing=0.5), rule)
    assert LRS[20] < found.lr_max < LRS[80]
    assert found.lr_min == pytest.approx(found.lr_max / 10)
    assert found.reason
    assert (suggest_lr(curve(losses, stopped_at=LRS[90], smoothing=0.5)) == found) is (rule == "minimum/10")


def test_the_steepest_rule_finds_the_steepest_point():
    x = np.linspace(-1, 1, 90)
    losses = np.where(x < 0.5, 2.3 - 2 / (1 + np.exp(-12 * (x + 0.2))), 0.3 + 20 * (x - 0.5) ** 2)
    found = suggest_lr(curve(losses, stopped_at=LRS[90], smoothing=0.0), "steepest")
    assert abs(np.log(found.lr_max / LRS[int(np.abs(x + 0.2).argmin())])) < 2.1 * np.log(LRS[1] / LRS[0])


def test_the_valley_does_not_depend_on_noise_before_the_fall():
    losses = np.concatenate([np.full(40, 2.3), np.linspace(2.3, 0.3, 31)[1:], np.full(30, 0.3) + np.arange(30) * 0.05])
    found = []
    for noisy in (0, 20, 38):
        bumped = losses.copy()
        bumped[noisy] += 0.01
        found.append(suggest_lr(curve(bumped, smoothing=0.0), "valley").lr_max)
    np.testing.assert_allclose(found, found[0])
    # the first tenth of the fall ends at point 42, its bottom is point 69
    assert LRS[58] < found[0] < LRS[62]


def test_a_loss_that_has_come_to_rest_is_not_still_falling_though_its_average_is():
    rest = 0.3 + 0.002 * np.arange(10)
    losses = np.concatenate([np.full(60, 2.3), np.linspace(2.3, 0.3, 30), rest])
    lagging = curve(losses)
    assert lagging.smoothed.argmin() == len(losses) - 1
    assert LRS[60] < suggest_lr(lagging, "valley").lr_max < LRS[95]


def test_without_divergence_the_rule_by_divergence_says_so():
    x = np.linspace(-1, 1, 100)
    losses = 1 + (x - 0.3) ** 2
    with pytest.raises(NoSuggestion, match="did not diverge up to lr=10"):
        suggest_lr(curve(losses, smoothing=0.0), "divergence/3")
    lowest = LRS[int(losses.argmin())]
    assert suggest_lr(curve(losses, smoothing=0.0), "minimum/10").lr_max == pytest.approx(lowest / 10)


def test_a_loss_that_is_not_finite_at_the_first_point_gives_no_suggestion():
    test = lr_range_test(Quadratic(), lambda m, _: m.w.sum() * float("inf"), [0], lo=1e-3)
    with pytest.raises(NoSuggestion, match=r"diverged at lr=0\.001"):
        test.suggest()
    assert "diverged at lr=0.001" in test.report().summary


def test_divergence_does_not_hang_on_noise():
    x, rng = np.linspace(0, 1, 80), np.random.default_rng(0)
    clean = np.where(x < 0.8, 2.3 - 2 * x, 0.7 + 100 * (x - 0.8) ** 2)
    found = [divergence_lr(curve(clean + 0.1 * rng.standard_normal(80), LRS[80])) for _ in range(50)]
    assert np.abs(np.log10(np.array(found) / LRS[64])).max() < 0.6


def test_zones_follow_the_slopes_of_both_losses():
    per_decade, rng = 100 / 7, np.random.default_rng(0)
    decade = np.floor(np.arange(100) / per_decade + 1e-9)
    t = np.arange(100) / per_decade - decade
    val = np.select([decade < 2, decade < 4, decade < 5], [3 - t, 2 + 0 * t, 2 + t], 2 + 2 * t)
    train = np.select([decade < 5], [3 - t], 1 + t)
    losses = curve(train, val=val + 0.01 * rng.standard_normal(100))
    zones = np.array(losses.zones)
    wanted = {0: "underfit", 2: "balance", 4: "overfit", 5: "diverging"}
    at = np.floor(np.log10(LRS / LRS[0]) + 1e-9)
    assert {d: set(zones[at == d][2:-2]) for d in wanted} == {d: {zone} for d, zone in wanted.items()}
    assert zones[-1] == "unclear"  # a decade with a single point


def test_validation_uses_the_statistics_of_its_batch_and_no_dropout():
    model, (loader, held_out) = network(norm=True), digits()
    with torch.no_grad():
        model[1].running_mean.fill_(100.0)
    got = lr_range_test(model, nn.CrossEntropyLoss(), loader, val_batch=held_out, lo=1e-12, hi=1e-11, num_steps=10)
    model.train()
    model[3].eval()
    with torch.no_grad():
        wanted = F.cross_entropy(model(held_out[0]), held_out[1]).item()
    assert got.curves[0].val[0] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(got.curves[0].val, wanted, rtol=1e-4)


def test_same_seed_same_curves_and_all_runs_see_the_same_batches():
    model, (loader, held_out) = network(), digits()
    first, second = (
        lr_range_test(model, nn.CrossEntropyLoss(), loader, val_batch=held_out, weight_decays=(0.0, 0.0), seed=seed)
        for seed in (3, 3)
    )
    np.testing.assert_array_equal(first.curves[0].train, second.curves[0].train)
    np.testing.assert_array_equal(first.curves[0].train, first.curves[1].train)
    other = lr_range_test(model, nn.CrossEntropyLoss(), loader, seed=4)
    assert other.curves[0].train[0] != first.curves[0].train[0]


def test_digits_give_learning_rates_that_train_and_a_figure_per_weight_decay():
    model, (loader, held_out) = network(), digits()
    test = lr_range_test(
        model, nn.CrossEntropyLoss(), loader, lo=1e-4, hi=100, val_batch=held_out, weight_decays=(0.0, 1e-3, 0.3)
    )
    assert 1e-2 < test.suggest().lr_max < 3
    assert test.suggest().weight_decay in (0.0, 1e-3)  # 0.3 holds the loss up
    report = test.report()
    assert sum(block.kind == "figure" for block in report.blocks) == 3
    assert "13 batches" in report.to_html()
    report.to_dict()


def test_the_largest_harmless_weight_decay_is_chosen():
    test = quadratic_test(4.0, weight_decays=(0.0, 1e-9, 1e-8))
    assert test.best_curve().weight_decay == test.suggest().weight_decay


def test_groups_keep_the_ratios_of_their_learning_rates():
    model, seen = network(), []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([g["lr"] for g in self.param_groups])
            return super().step(closure)

    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters(), "lr": 0.02}]
    lr_range_test(model, nn.CrossEntropyLoss(), digits()[0], Recording(groups), num_steps=10)
    np.testing.assert_allclose([b / a for a, b in seen], 0.2)
    np.testing.assert_allclose([a for a, _ in seen], np.geomspace(1e-6, 10, 10)[: len(seen)])


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: SAM(o, rho=0.05)])
def test_optimizers_that_need_a_closure_work(wrap):
    model = network()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    test = lr_range_test(model, nn.CrossEntropyLoss(), digits()[0], optimizer, 1e-2, 1.0, num_steps=30)
    assert test.curves[0].train.min() < test.curves[0].train[0] - 0.3


def test_momentum_is_set_where_the_optimizer_has_it():
    model = network()
    adam = torch.optim.Adam(model.parameters())
    curves = lr_range_test(model, nn.CrossEntropyLoss(), digits()[0], adam, momentums=(0.0, 0.9), num_steps=20).curves
    assert [c.momentum for c in curves] == [0.0, 0.9]
    assert not np.array_equal(curves[0].train, curves[1].train[: len(curves[0].train)])


BAD = [
    ({"lo": 0.0}, "lo must be positive"),
    ({"lo": 1.0, "hi": 1.0}, "hi must be finite and greater"),
    ({"num_steps": 9}, "num_steps must be at least 10"),
    ({"mode": "log"}, "mode must be"),
    ({"stop_factor": 0}, "stop_factor must be positive"),
    ({"smoothing": 1.0}, "smoothing must lie"),
    ({"weight_decays": (-1.0,)}, "weight_decays must be"),
    ({"momentums": (1.0,)}, "momentums must lie"),
    ({"loader": []}, "loader must hold at least one batch"),
    ({"loader": iter([0])}, "readable more than once"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_input_is_refused(changed, message):
    given = {"model": Quadratic(), "loss_fn": lambda m, _: m.w.square().sum(), "loader": [0], **changed}
    with pytest.raises(ValueError, match=message):
        lr_range_test(**given)


def test_momentum_of_an_optimizer_without_one_and_an_unknown_rule_are_refused():
    model = Quadratic()
    adagrad = torch.optim.Adagrad(model.parameters())
    with pytest.raises(ValueError, match="leave momentums"):
        lr_range_test(model, lambda m, _: m.w.square().sum(), [0], adagrad, momentums=(0.9,))
    with pytest.raises(ValueError, match="rule must be one of"):
        suggest_lr(curve(np.ones(50)), "best")


def test_a_loss_of_another_model_is_refused():
    other = Quadratic()
    with pytest.raises(ValueError, match="must depend on the model"):
        lr_range_test(Quadratic(), lambda m, _: other.w.square().sum(), [0])
