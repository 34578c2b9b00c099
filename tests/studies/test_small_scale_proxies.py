import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poise.preflight import LRCurve
from poise.studies import small_scale_proxies as study

SHORT = study.Setting(qk_norm=False, width=16, steps=12, warm_up=3, probe_step=6)


def model(qk_norm, width=32, seed=0):
    return study.CharacterGPT(width, 64, qk_norm, torch.Generator().manual_seed(seed))


def ids(batch=3, seed=0):
    return torch.randint(64, (batch, study.CONTEXT), generator=torch.Generator().manual_seed(seed))


def test_measured_logits_are_those_that_attention_uses():
    net, x = model(False), ids()
    hidden = net.tokens(x) + net.positions.weight
    q, k, v = net.blocks[0].heads(hidden)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(study.HEAD_DIM)
    hide = torch.ones(32, 32, dtype=torch.bool).triu(1)
    mixed = logits.masked_fill(hide, -math.inf).softmax(-1) @ v
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    first = logits.masked_fill(hide, 0).abs().max().item()
    net.blocks[1].qkv.weight.data.zero_()  # then the largest logit is the first block's
    assert study.attention_signals(net, x)[0] == pytest.approx(first, rel=1e-5)


def test_entropy_is_one_for_even_attention_and_goes_to_zero_for_sharp_attention():
    net = model(False)
    for block in net.blocks:
        block.qkv.weight.data.zero_()
    assert study.attention_signals(net, ids()) == (0.0, pytest.approx(1.0, abs=1e-5))
    net = model(False)
    for block in net.blocks:
        block.qkv.weight.data[:64].mul_(100)
    logit_max, entropy = study.attention_signals(net, ids())
    assert logit_max > 1e3
    assert entropy < 0.05


def test_qk_norm_bounds_the_measured_logits():
    net = model(True)
    for block in net.blocks:
        block.qkv.weight.data.mul_(1000)
    bound = max(block.qk_norm.logit_bound() for block in net.blocks)
    assert study.attention_signals(net, ids())[0] <= bound * (1 + 1e-5)


def test_schedule_warms_up_to_one_and_ends_at_the_final_rate():
    setting = replace(SHORT, steps=200, warm_up=20)
    shape = [study._shape(t, 0.1, setting) for t in range(201)]
    assert shape[0] == pytest.approx(1 / 20)
    assert max(shape) == shape[19] == shape[20] == 1
    assert all(a > b for a, b in pairwise(shape[20:]))
    assert 0.1 * shape[200] == pytest.approx(study.FINAL_LR)


def test_same_seed_same_run_and_the_callers_state_is_untouched():
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (study.train(SHORT, lr=0.01, seed=1) for _ in range(2))
    assert first == second != study.train(SHORT, lr=0.01, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_size_is_the_width_and_a_run_can_stop_at_the_probe():
    wide = study.train(replace(SHORT, width=32), lr=0.01, seed=0)
    assert study.train(SHORT, lr=0.01, seed=0, size=32) == wide
    stopped = study.train(replace(SHORT, last_step=6), lr=0.01, seed=0, size=32)
    assert stopped["logit_max_early"] == stopped["logit_max_end"] == wide["logit_max_early"]


def test_training_learns_and_qk_norm_keeps_logits_small_at_a_high_rate():
    setting = replace(SHORT, steps=40)
    plain, normed = (study.train(replace(setting, qk_norm=q), lr=0.1, seed=0) for q in (False, True))
    assert max(plain["loss"], normed["loss"]) < plain["init_loss"] - 0.5
    assert plain["logit_max_end"] > 5 * normed["logit_max_end"]


def test_a_transplanted_scale_fixes_the_logits():
    net = model(False)
    for block in net.blocks:
        block.qk_norm = study.TransplantedScale(100.0)
    x = torch.full((2, study.CONTEXT), 7)
    net.positions.weight.data.zero_()
    net.blocks[0].qkv.weight.data[32:64] = net.blocks[0].qkv.weight.data[:32]  # keys as queries
    assert study.attention_signals(net, x)[0] == pytest.approx(100 * study.HEAD_DIM**0.5, rel=1e-3)
    usual, scaled = (study.train(replace(SHORT, kappa=kappa), lr=0.01, seed=0) for kappa in (None, 1e4))
    assert scaled["logit_max_early"] > 1e4 > usual["logit_max_early"]
    assert scaled["entropy_early"] < 0.1


def test_a_run_without_warm_up_begins_at_the_peak():
    assert study._shape(0, 0.1, replace(SHORT, warm_up=0)) == 1


def test_large_epsilon_shrinks_updates():
    usual, large = (study.train(replace(SHORT, eps=eps), lr=0.01, seed=0) for eps in (1e-8, 1e-3))
    assert large["eps_shrink_end"] < 0.8 < 0.99 < usual["eps_shrink_end"] <= 1


def test_bigrams_beat_unigrams():
    text = study.corpus()
    share = torch.bincount(text.train, minlength=text.classes).double() / len(text.train)
    unigram = -share.log()[text.windows[:, 1:]].mean().item()
    assert 1 < study.bigram_loss() < unigram


def test_models_side_by_side_end_as_they_do_alone():
    lrs, seeds = (0.003, 0.01), (0, 1)
    together = study.train_side_by_side(replace(SHORT, qk_norm=True), lrs, seeds)
    for i, (lr, seed) in enumerate((lr, seed) for lr in lrs for seed in seeds):
        assert together[i] == pytest.approx(study.train(replace(SHORT, qk_norm=True), lr, seed), rel=1e-3)


def test_a_run_is_the_one_of_plain_pytorch():
    setting, lr = replace(SHORT, qk_norm=True, z_coef=0.0), 0.01
    text, generator = study.corpus(), torch.Generator().manual_seed(3)
    net = study.CharacterGPT(setting.width, text.classes, True, generator, setting.blocks)
    starts = torch.randint(len(text.train) - study.CONTEXT, (setting.steps, setting.batch, 1), generator=generator)
    optimizer = study.IndependentAdamW(net.parameters(), lr, (0.9, 0.95))
    for step in range(setting.steps):
        optimizer.param_groups[0]["lr"] = lr * study._shape(step, lr, setting)
        ids = text.train[starts[step] + torch.arange(study.CONTEXT + 1)]
        optimizer.zero_grad()
        F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    windows = text.windows
    loss = F.cross_entropy(net(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).item()
    assert study.train(setting, lr, 3)["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_diverging_run_leaves_its_neighbours_alone():
    calm, wild = study.train_side_by_side(SHORT, (0.01, 1e18), (0,))
    assert not wild["loss"] < wild["init_loss"]
    assert calm["loss"] == pytest.approx(study.train(SHORT, 0.01, 0)["loss"], rel=1e-3)


def test_mu_param_divides_the_rate_of_linear_layers_only():
    net = model(True, width=64)
    factors = study._lr_factors(net, replace(SHORT, width=64, mu_base=16))
    linear = {name for name, m in net.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name for name, factor in factors.items() if factor == 0.25} == {f"{name}.weight" for name in linear}
    assert {factor for name, factor in factors.items() if name.removesuffix(".weight") not in linear} == {1.0}
    assert set(study._lr_factors(net, replace(SHORT, width=64)).values()) == {1.0}


def test_mu_param_changes_nothing_at_its_own_width():
    assert study.train(replace(SHORT, mu_base=16), 0.01, 0) == study.train(SHORT, 0.01, 0)
    assert study.train(replace(SHORT, mu_base=8), 0.01, 0) != study.train(SHORT, 0.01, 0)


def test_full_mu_param_scales_the_head_and_attention_and_begins_with_even_attention():
    net, plain, x = model(True, width=64), model(True, width=64), ids()
    study.apply_full_mu_param(net, 16)
    torch.testing.assert_close(net.head.weight, plain.head.weight / 2)  # sqrt(16) / 64 beside 1 / sqrt(64)
    assert study.attention_signals(net, x) == (0.0, pytest.approx(1.0, abs=1e-5))
    q, k = torch.randn(2, 1, 4, 8, study.HEAD_DIM, generator=torch.Generator().manual_seed(0))
    scaled, same = net.blocks[0].qk_norm(q, k)
    usual = plain.blocks[0].qk_norm(q, k)
    torch.testing.assert_close(scaled * study.HEAD_DIM**0.5, usual[0])
    torch.testing.assert_close(same, usual[1])
    trained = study.train(replace(SHORT, qk_norm=True, width=32, mu_base=16, mu_full=True), 0.1, 0)
    assert trained["logit_max_end"] > 0  # queries leave zero
    assert trained["loss"] < trained["init_loss"]


def test_depth_and_batch_are_those_of_the_setting():
    deep, _ = study._begin(replace(SHORT, blocks=5), 0)
    _, starts = study._begin(replace(SHORT, batch=3), 0)
    assert len(deep.blocks) == 5
    assert starts.shape == (SHORT.steps, 3, 1)


def test_wide_and_deep_models_have_as_many_parameters():
    for plan in study.PLANS.values():
        wide, deep = plan.wide**2 * study.BLOCKS, plan.setting.width**2 * plan.deep
        assert wide == deep


def test_best_rate_is_the_lowest_point_of_a_parabola():
    lrs = (1e-3, 1e-2, 3e-2, 1e-1)
    losses = 2 + 0.3 * (np.log10(lrs) + 1.8) ** 2
    assert study.best_log_lr(lrs, losses) == pytest.approx(-1.8)
    assert study.best_log_lr(lrs, np.array([1.0, 2.0, 3.0, 4.0])) == -3  # at an end: the end
    assert study.best_log_lr(lrs, np.array([4.0, 3.0, 2.0, 1.0])) == -1
    assert study.best_log_lr(lrs, np.array([2.0, 2.0, 2.0, 2.0])) == -3


def test_no_effect_compares_the_extremes_whatever_their_order():
    tiny = study.PLANS["tiny"]
    usual, other = (_sweep(tiny.lrs, height) for height in (1.0, 2.0))

    def compare(usual, other):
        runs = {("curves", study.NORMED): usual, ("batches", 4): other}
        return study.compare_extremes(study.Results(tiny, runs), "batches", 8, "windows").numbers

    numbers = compare(usual, other)
    assert numbers["ratio"] == pytest.approx(2)
    assert compare(other, usual) == pytest.approx(numbers)
    assert numbers["p_apart"] > 0.975
    assert not study.compare_extremes(study.Results(tiny, {}), "batches", 8, "windows").numbers


def test_muparam_is_measured_by_the_way_its_best_rate_goes():
    lrs = (1e-3, 1e-2, 3e-2, 1e-1)
    best = {study.NARROW: -1.5, study.STANDARD: -2.2, study.MU: -1.6}
    runs = {("scaled", name): _valley(lrs, at) for name, at in best.items()}
    numbers = study.mu_optimum.measure(study.Results(study.PLANS["tiny"], runs)).numbers
    assert numbers["difference"] == pytest.approx(0.6)


def _sweep(lrs, height):
    """Three seeds whose loss rises with the learning rate by ``height`` in all, with a little noise."""
    values = [[2 + height * i / (len(lrs) - 1) * (1 + 0.01 * s) for s in range(3)] for i in range(len(lrs))]
    return _result(lrs, values)


def _valley(lrs, at):
    return _result(lrs, [[2 + (np.log10(lr) - at) ** 2] * 3 for lr in lrs])


def _result(lrs, values):
    points = [study.SweepPoint(lr, None, s, values[i][s], 10.0) for i, lr in enumerate(lrs) for s in range(3)]
    result = study.SweepResult(tuple(lrs), (None,), (0, 1, 2), tuple(points))
    assert isinstance(result.curve(), LRCurve)
    return result
