import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from poise.cli.app import app
from poise.optim import EMA, ModelAverager, fuse, loss_barrier, open_checkpoint, save_checkpoint


def network(seed=0, head=3):
    torch.manual_seed(seed)
    layers = {"body": nn.Linear(6, 8), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, head)}
    return nn.Sequential(*layers.values())


def descendants(count=3, size=0.05):
    """Models near a common one."""
    base = network()
    models = []
    for seed in range(count):
        model = copy.deepcopy(base)
        generator = torch.Generator().manual_seed(100 + seed)
        with torch.no_grad():
            for p in model.parameters():
                p += size * torch.randn(p.shape, generator=generator)
            model[1].num_batches_tracked += seed
            model[1].running_mean += seed
        models.append(model)
    return base, models


def equal(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def test_one_model_is_itself_bit_for_bit_and_three_copies_nearly():
    _, (model, *_) = descendants()
    equal(fuse([model])[0].state_dict(), model.state_dict(), atol=0, rtol=0)
    equal(fuse([model] * 3)[0].state_dict(), model.state_dict(), atol=0, rtol=2e-7)


def test_mean_of_the_weights_whatever_the_order_and_inputs_stay():
    _, models = descendants()
    before = [copy.deepcopy(m.state_dict()) for m in models]
    fused, info = fuse(models)
    expected = torch.stack([m[0].weight for m in models]).mean(0)
    torch.testing.assert_close(fused[0].weight, expected)
    torch.testing.assert_close(fused[1].running_mean, models[1][1].running_mean)
    assert fused[1].num_batches_tracked == 2
    assert fused[1].num_batches_tracked.dtype == torch.long
    assert info.taken == ("1.num_batches_tracked",)
    for order in itertools.permutations(models):
        equal(fuse(list(order))[0].state_dict(), fused.state_dict(), atol=1e-7, rtol=1e-6)
    with torch.no_grad():
        fused[0].weight.zero_()
    for model, state in zip(models, before, strict=True):
        equal(model.state_dict(), state, atol=0, rtol=0)


def test_half_precision_does_not_overflow():
    state = {"w": torch.full((4, 4), 60000.0, dtype=torch.float16)}
    fused, _ = fuse([state] * 4)
    assert fused["w"].dtype == torch.float16
    assert (fused["w"] == 60000).all()


def test_weights_are_normalised_unless_told_otherwise():
    _, (model, *_) = descendants()
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    equal(fuse([state, state], [0.1, 1.0])[0], state, atol=1e-7, rtol=1e-6)
    raw, _ = fuse([state, state], [0.1, 1.0], normalize=False)
    equal(raw, {k: 1.1 * v for k, v in state.items()}, atol=1e-7, rtol=1e-6)


def test_scale_goes_from_the_base_to_the_mean():
    base, models = descendants()
    equal(
        fuse(models, base=base, scale=0.0)[0].state_dict(),
        {**base.state_dict(), "1.num_batches_tracked": torch.tensor(2)},
    )
    mean = fuse(models)[0].state_dict()
    equal(fuse(models, base=base)[0].state_dict(), mean)
    half = fuse(models, base=base, scale=0.5)[0].state_dict()
    torch.testing.assert_close(half["0.weight"], (base[0].weight.detach() + mean["0.weight"]) / 2)


def test_fused_least_squares_solutions_solve_for_the_mean_target():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    states = [{"w": torch.linalg.lstsq(x, y[:, i : i + 1]).solution} for i in range(5)]
    fused, _ = fuse(states, force=True)
    torch.testing.assert_close(fused["w"], torch.linalg.lstsq(x, y.mean(1, keepdim=True)).solution)


def test_shrink_tells_orthogonal_changes_from_equal_ones():
    base = {"w": torch.full((4, 4), 3.0, dtype=torch.float64)}
    steps = torch.eye(16, dtype=torch.float64).view(16, 4, 4)
    _, apart = fuse([{"w": base["w"] + step} for step in steps[:4]], base=base)
    assert apart.shrink == pytest.approx(0.5)
    torch.testing.assert_close(apart.norms, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(apart.cosines, torch.eye(4, dtype=torch.float64))
    _, same = fuse([{"w": base["w"] + steps[0]}] * 4, base=base)
    assert same.shrink == pytest.approx(1)
    assert math.isnan(fuse([base])[1].shrink)


def test_unrelated_models_are_refused_unless_forced():
    strangers = [network(seed).requires_grad_(False) for seed in range(3)]
    with pytest.raises(ValueError, match="must descend from a common one"):
        fuse(strangers)
    fused, info = fuse(strangers, force=True)
    assert abs(info.kinship) < 0.25
    torch.testing.assert_close(fused[0].weight, torch.stack([m[0].weight for m in strangers]).mean(0))


def test_heads_are_left_out_and_a_tied_weight_stays_tied():
    models = [network(head=h) for h in (3, 4)]
    fused, info = fuse(models, exclude=["2.*"])
    assert info.excluded == ("2.weight", "2.bias")
    torch.testing.assert_close(fused[2].weight, models[0][2].weight)
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    fused, _ = fuse([tied, copy.deepcopy(tied)])
    assert fused["a"].weight is fused["b"].weight


def test_blocks_do_not_change_the_result():
    big = [{"w": torch.randn(300, 400, generator=torch.Generator().manual_seed(1)) + i * 1e-3} for i in range(3)]
    fused, info = fuse(big)
    torch.testing.assert_close(fused["w"], torch.stack([s["w"] for s in big]).mean(0))
    flat = torch.stack([s["w"].double().flatten() for s in big])
    flat = flat - flat.mean(0)
    torch.testing.assert_close(info.norms, flat.norm(dim=1), rtol=1e-3, atol=1e-3)


def test_a_stream_gives_the_same_mean_with_any_weights():
    _, models = descendants(4)
    averager = ModelAverager()
    for model, weight in zip(models, (1.0, 2.0, 0.5, 3.0), strict=True):
        averager.add(model, weight)
    batch, _ = fuse([m.state_dict() for m in models], (1.0, 2.0, 0.5, 3.0))
    equal(averager.average(), batch, atol=1e-6, rtol=1e-6)
    assert averager.n == 4


def test_leaving_one_out_of_the_stream():
    _, models = descendants(4)
    averager = ModelAverager()
    for model in models:
        averager.add(model)
    without = averager.average_without(models[1])
    expected = fuse([models[0], models[2], models[3]])[0].state_dict()
    equal(without, expected, atol=1e-6, rtol=1e-6)


def test_a_stream_goes_on_after_a_stop_and_refuses_strangers_unchanged():
    _, models = descendants(3)
    averager, resumed = ModelAverager(), ModelAverager()
    averager.add(models[0])
    resumed.load_state_dict(copy.deepcopy(averager.state_dict()))
    for other in (averager, resumed):
        other.add(models[1])
    equal(averager.average(), resumed.average(), atol=0, rtol=0)
    with pytest.raises(ValueError, match=r"'2.weight' must .*\(3, 8\)"):
        averager.add(network(head=5))
    equal(averager.average(), resumed.average(), atol=0, rtol=0)


def test_barrier_with_itself_is_zero_and_between_strangers_is_not():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()

    def train(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model

    def loss(model):
        return F.cross_entropy(model(x), y).detach()

    a, b = train(0), train(1)
    assert loss_barrier(a, a, loss).height == 0
    barrier = loss_barrier(a, b, loss)
    assert barrier.height > 0.1
    assert barrier.losses[0] == pytest.approx(float(loss(a)), abs=1e-6)
    assert barrier.losses[-1] == pytest.approx(float(loss(b)), abs=1e-6)


def test_ema_has_the_closed_form_of_a_constant_target():
    model = nn.Linear(2, 2)
    start = model.weight.detach().clone()
    ema = EMA(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    for _ in range(7):
        ema.update()
    torch.testing.assert_close(ema.module.weight, 0.9**7 * start + (1 - 0.9**7) * 5)
    assert not ema.module.weight.requires_grad


def test_ema_of_a_training_model_evaluates():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    ema, x = EMA(model, decay=0.5), torch.randn(8, 3)
    for _ in range(3):
        model(x)
        ema.update()
    assert model.training
    before = copy.deepcopy(ema.module.state_dict())
    assert torch.equal(ema.module(x), ema.module(x))  # no dropout, no batch statistics
    assert torch.equal(ema.module(x)[:1], ema.module(x[:1]))
    equal(ema.module.state_dict(), before, atol=0, rtol=0)


def test_ema_treats_buffers_by_their_kind():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, decay=0.5)
    for _ in range(4):
        model(torch.randn(8, 3) + 2)
        ema.update()
    assert ema.module.num_batches_tracked == 4
    assert 0 < float(ema.module.running_mean.mean()) < float(model.running_mean.mean())


def test_ema_every_k_steps_has_the_same_horizon():
    model = nn.Linear(2, 2)
    often, seldom = EMA(model, 0.99), EMA(model, 0.99, every=5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(20):
        often.update()
        seldom.update()
    torch.testing.assert_close(often.module.weight, seldom.module.weight)


def test_ema_of_bfloat16_weights_moves():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = EMA(model, decay=0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    for _ in range(200):
        ema.update()
    assert float(ema.module.weight.float().mean()) == pytest.approx(2 - 0.999**200, abs=0.01)
    assert ema.module.weight.dtype == torch.bfloat16


def test_ema_resumes_and_swaps_in_and_out():
    model = network()
    ema = EMA(model, 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    other = EMA(model, 0.9)
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    equal(other.module.state_dict(), ema.module.state_dict(), atol=0, rtol=0)
    trained, averaged = copy.deepcopy(model.state_dict()), copy.deepcopy(ema.module.state_dict())

    def evaluate():
        with ema.applied() as inside:
            equal(inside.state_dict(), averaged, atol=0, rtol=0)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        evaluate()
    equal(model.state_dict(), trained, atol=0, rtol=0)
    equal(ema.module.state_dict(), averaged, atol=0, rtol=0)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_command_averages_files_and_tells_what_differs(tmp_path, ending):
    base, models = descendants()
    paths = [tmp_path / f"{i}.{ending}" for i in range(3)]
    for model, path in zip(models, paths, strict=True):
        save_checkpoint(model.state_dict(), path)
    save_checkpoint(base.state_dict(), tmp_path / "base.pt")
    out = tmp_path / f"fused.{ending}"
    command = ["fuse", *map(str, paths), "-o", str(out), "--exclude", "2.*", "--base", str(tmp_path / "base.pt")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "2 left out: 2." in said
    assert "the changes are unrelated" in said
    expected = fuse([m.state_dict() for m in models], exclude=["2.*"])[0]
    equal(dict(open_checkpoint(out)), expected, atol=1e-7, rtol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_checkpoints_inside_of_a_training_state_are_found(tmp_path):
    model = network()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "run.pt")
    equal(dict(open_checkpoint(tmp_path / "run.pt")), model.state_dict(), atol=0, rtol=0)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        open_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="no checkpoint that torch can read"):
        open_checkpoint(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        open_checkpoint(tmp_path / "missing.pt")


def test_bad_input_is_named():
    _, models = descendants()
    states = [m.state_dict() for m in models]
    with pytest.raises(ValueError, match="at least one model"):
        fuse([])
    with pytest.raises(ValueError, match=r"'2.weight' is \(3, 8\) in model 0 and \(5, 8\) in model 1"):
        fuse([network(), network(head=5)])
    with pytest.raises(ValueError, match=r"'0.weight' is torch.float32 in model 0 and torch.float64"):
        fuse([states[0], {k: v.double() for k, v in states[1].items()}])
    with pytest.raises(ValueError, match=r"'0.bias' is missing in model 1"):
        fuse([states[0], {k: v for k, v in states[1].items() if k != "0.bias"}])
    with pytest.raises(ValueError, match="'extra' is missing in model 0"):
        fuse([states[0], {**states[1], "extra": torch.ones(1)}])
    broken = {**states[1], "0.weight": states[1]["0.weight"] * math.nan}
    with pytest.raises(ValueError, match=r"'0.weight' of model 1 is not"):
        fuse([states[0], broken])
    with pytest.raises(ValueError, match="weights must not cancel out"):
        fuse(states[:2], [1, -1])
    with pytest.raises(ValueError, match="weights must be finite, one for each of 3"):
        fuse(states, [1, 1])
    with pytest.raises(ValueError, match="patterns that fit no name"):
        fuse(states, exclude=["haed.*"])
    with pytest.raises(ValueError, match="leaves nothing"):
        fuse(states, exclude=["*"])
    with pytest.raises(ValueError, match="no base is given"):
        fuse(states, scale=0.5)
    with pytest.raises(ValueError, match="points must be"):
        loss_barrier(models[0], models[1], lambda m: 0.0, points=2)
    with pytest.raises(ValueError, match="decay must lie"):
        EMA(models[0], 1.5)
    with pytest.raises(ValueError, match="no average before"):
        ModelAverager().average()


# --- an average that is served while the model keeps learning


def ramp(decay, steps, **settings):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay, **settings)
    for t in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(float(t))
        ema.update()
    return model, ema


def test_an_average_lags_behind_a_ramp_by_its_horizon():
    _, ema = ramp(0.9, 300)
    assert 300 - ema.module.weight.item() == pytest.approx(0.9 / 0.1, rel=1e-9)


def test_noise_is_averaged_out_as_theory_says():
    model = nn.Linear(1, 1, bias=False).double()
    ema, generator = EMA(model, 0.9), torch.Generator().manual_seed(0)
    values = []
    for noise in torch.randn(20_000, generator=generator, dtype=torch.float64):
        with torch.no_grad():
            model.weight.fill_(noise)
        ema.update()
        values.append(ema.module.weight.item())
    assert torch.tensor(values[200:]).var().item() == pytest.approx(0.1 / 1.9, rel=0.1)


def test_a_warm_up_forgets_the_initial_weights_sooner():
    _, slow = ramp(0.99, 20)
    _, fast = ramp(0.99, 20, warmup=True)
    assert fast.module.weight > slow.module.weight
    _, first = ramp(0.99, 1, warmup=True)
    assert first.module.weight.item() == pytest.approx(1 - 2 / 11)


def test_weights_that_are_not_finite_do_not_enter_the_average():
    model, ema = ramp(0.9, 5, skip_nonfinite=True)
    kept = ema.module.weight.clone()
    with torch.no_grad():
        model.weight.fill_(math.nan)
    with pytest.warns(UserWarning, match="leaves such updates out"):
        ema.update()
    ema.update()
    assert ema.skipped == 2
    assert torch.equal(ema.module.weight, kept)


def test_served_weights_are_swapped_once():
    model, ema = ramp(0.9, 5)
    kept = model.weight.clone()
    with ema.applied() as served:
        assert served.weight.item() == pytest.approx(ema_of_ramp(0.9, 5))
        with pytest.raises(RuntimeError, match="must not be entered twice"), ema.applied():
            pass
        with pytest.raises(RuntimeError, match="within applied"):
            ema.update()
    assert torch.equal(model.weight, kept)
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert torch.equal(model.weight, kept)


def ema_of_ramp(decay, steps):
    value = 0.0
    for t in range(1, steps + 1):
        value += (1 - decay) * (t - value)
    return value


def test_a_horizon_that_does_not_fit_the_task_is_named():
    _, ema = ramp(0.99, 1)
    with pytest.warns(UserWarning, match="a decay of at most 0.97 fits"):
        ema.check_horizon(100)
    ema.check_horizon(300)
    _, short = ramp(0.5, 1)
    with pytest.warns(UserWarning, match="at least 0.95"):
        short.check_horizon(300)


def test_an_average_does_not_follow_another_model():
    model, ema = ramp(0.9, 1)
    model.extra = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="extra"):
        ema.update()
    with pytest.raises(RuntimeError, match="only one has"):
        ema.sync_structure()
