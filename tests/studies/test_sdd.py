import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.nn import SDDLinear
from poise.studies import sdd as study


def seeded(make, arm, seed=0):
    torch.manual_seed(seed)
    return make(arm)


def test_blocks_are_pre_or_post_norm():
    x = torch.randn(5, study.WIDTH)
    for post_norm in (True, False):
        block = study.ResidualBlock(post_norm)
        f = lambda y, b=block: F.linear(F.silu(F.linear(y, b.up.weight)), b.down.weight)  # noqa: E731
        rms = lambda y: y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
        torch.testing.assert_close(block(x), rms(x + f(x)) if post_norm else x + f(rms(x)))


def test_initial_weights_are_the_papers_and_those_at_the_end_of_a_branch_smaller():
    net = seeded(study.digit_network, study.POST)
    up, down = (torch.cat([getattr(block, name).weight.flatten() for block in net[1]]) for name in ("up", "down"))
    assert up.std().item() == pytest.approx((2.5 * 48) ** -0.5, rel=0.01)
    assert down.std().item() == pytest.approx((2.5 * 48) ** -0.5 / 32**0.5, rel=0.01)


def test_decoupled_arm_differs_in_its_maps_only():
    net = seeded(study.digit_network, study.SDD)
    decoupled = {name: m for name, m in net.named_modules() if isinstance(m, SDDLinear)}
    assert len(decoupled) == 2 * study.BLOCKS
    for name, module in decoupled.items():
        assert module.alpha.unique().tolist() == [0.25 if name.endswith("down") else 1.0]
        assert module.weight.std().item() == pytest.approx((2.5 * 48) ** -0.5, rel=0.1)
    assert {type(net[0]), type(net[3])} == {nn.Linear}
    text = seeded(study.text_network, study.SDD)
    kinds = {name.split(".")[-1]: m for name, m in text.named_modules() if isinstance(m, SDDLinear)}
    assert {name: m.groups for name, m in kinds.items()} == {"qkv": 3, "out": 1, "up": 1, "down": 1}
    assert kinds["down"].alpha[0].item() == pytest.approx(12**-0.5)


@pytest.mark.parametrize("arm", [study.POST, study.SDD])
def test_language_model_is_causal_and_its_stream_is_normalised(arm):
    net = seeded(study.text_network, arm)
    x = torch.randint(64, (2, study.CONTEXT))
    y = x.clone()
    y[:, 20:] = (y[:, 20:] + 1) % 64
    torch.testing.assert_close(net(x)[:, :20], net(y)[:, :20])
    assert not torch.allclose(net(x)[:, 20:], net(y)[:, 20:])
    out = net.blocks[0](torch.randn(2, study.CONTEXT, study.TEXT_WIDTH))
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, study.CONTEXT), rtol=1e-4, atol=1e-4)


def test_fresh_arms_of_a_seed_are_the_same_each_time_and_begin_near_guessing():
    for arm in study.ARMS:
        first, second = (study.train_digits(arm, study.BASE, 2, 3) for _ in range(2))
        assert (first == second).all()
        assert 1.5 < first[0] < 6
    assert study.train_text(study.SDD, 1e-2, 2, 0)[0] == pytest.approx(math.log(64), abs=1.5)


def test_a_smaller_start_does_not_change_what_decoupled_maps_say():
    # The output of a decoupled map does not depend on the scale of its weights; the ends of the network do.
    net = seeded(study.digit_network, study.SDD)
    x = torch.randn(5, study.WIDTH)
    before = net[1](x)
    for module in net[1].modules():
        if isinstance(module, SDDLinear):
            module.weight.data *= 0.1
    torch.testing.assert_close(net[1](x), before, rtol=1e-2, atol=1e-2)


def test_small_starts_are_of_the_blocks_or_of_all_layers():
    whole, small = (seeded(lambda arm, f=f: study.digit_network(arm, f), study.POST) for f in (1.0, 0.1))
    for name, p in small.named_parameters():
        factor = 0.1 if name.startswith("1.") and p.ndim == 2 else 1.0
        torch.testing.assert_close(p, factor * whole.get_parameter(name))
    base, blocks, every = (study.train_digits(study.POST, c, 1, 0) for c in (study.BASE, study.SMALL, study.ALL_SMALL))
    assert len({base[0], blocks[0], every[0]}) == 3
    assert every[0] == pytest.approx(math.log(10), abs=0.1)
    slow = study.train_digits(study.PRE, study.SMALL_SLOW, 3, 0)
    assert slow[0] == study.train_digits(study.PRE, study.SMALL, 3, 0)[0]
    assert slow[-1] != study.train_digits(study.PRE, study.SMALL, 3, 0)[-1]


def test_finals_and_the_best_rate_are_read_from_the_losses():
    runs = {(study.POST, lr): np.full((2, 8), value) for lr, value in zip(study.TEXT_LRS, (3.0, 2.0, 2.5), strict=True)}
    found = study.Results(study.PLANS["tiny"], {(study.POST, "base"): np.arange(16.0).reshape(2, 8)}, runs)
    assert found.final(study.POST, "base").tolist() == [6.5, 14.5]
    assert found.final_text(study.POST)[0] == study.TEXT_LRS[1]
