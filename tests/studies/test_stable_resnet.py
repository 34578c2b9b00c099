import math

import numpy as np
import pytest
import torch
from torch import nn

from poise.studies import stable_resnet as study


@pytest.mark.parametrize("arm", [*study.KINDS, *study.RIVALS, *study.NORMED])
def test_networks_are_what_their_arm_says(arm):
    net, x = study.network(arm, 4, 0), torch.randn(6, 64)
    y = net.first(x)
    factors = {"standard": [1.0] * 4, "uniform": [0.5] * 4}.get(arm.split(",")[0])
    if factors is not None:
        for block, factor in zip(net.blocks, factors, strict=True):
            y = y + factor * block.branch(y)
        torch.testing.assert_close(net.blocks(net.first(x)), y)
    if arm in ("SkipInit", "Fixup"):  # every branch starts at zero, and its factor is learned
        torch.testing.assert_close(net.blocks(y), y)
        assert all(isinstance(block.scale, nn.Parameter) for block in net.blocks)
    assert any(isinstance(m, nn.BatchNorm1d) for m in net.modules()) == (arm in study.NORMED)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), study.network(arm, 4, 0).parameters(), strict=True))


def test_theory_is_two_to_the_depth_and_its_bound():
    assert study.theory_growth("standard", 10) == pytest.approx(1024)
    assert study.theory_growth("uniform", 100) == pytest.approx(1.01**100)


def test_fresh_networks_follow_the_theory():
    seeds = range(6)
    for kind in study.KINDS:
        growth, gradients = np.transpose([study.at_initialisation(kind, 8, seed) for seed in seeds])
        theory = math.log10(study.theory_growth(kind, 8))
        assert np.log10(growth).mean() == pytest.approx(theory, rel=0.15, abs=0.1)
        assert (gradients > 0).all()
        kept, theory = np.mean([study.distance_kept(kind, 8, 256, seed) for seed in seeds], axis=0)
        assert kept == pytest.approx(theory, rel=0.15)


def test_training_gives_the_same_numbers_for_a_seed_whatever_stands_beside_it():
    alone, pair = (study.train("uniform", 3, 20, seeds) for seeds in ((1,), (0, 1)))
    np.testing.assert_allclose(alone[:, 0], pair[:, 1], atol=0.01)
    assert alone.max() > 0.5


def test_clipping_bounds_the_first_step():
    accuracy = study.train("standard, clipped", 4, 1, (0,))
    assert accuracy.shape == (3, 1)
    assert (accuracy > 0).all()
