import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.studies import stable_resnet as study
from poise.studies.kit.side_by_side import SideBySide


def test_networks_side_by_side_train_as_if_each_were_alone_at_a_rate_of_its_own():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 20, 64, generator=g).double(), torch.randint(10, (3, 20), generator=g)
    rates = (0.1, 0.01, 0.1)
    singles = [study.network("uniform, batch norm", 3, seed).double() for seed in (4, 4, 5)]
    nets = SideBySide([study.network("uniform, batch norm", 3, seed).double() for seed in (4, 4, 5)])
    optimizer = torch.optim.SGD(nets.parameters(), 1.0, momentum=0.9)
    others = [torch.optim.SGD(net.parameters(), lr, momentum=0.9) for net, lr in zip(singles, rates, strict=True)]
    for _ in range(4):
        outputs = nets(x)
        optimizer.zero_grad()
        sum(F.cross_entropy(o, t) for o, t in zip(outputs, y, strict=True)).backward()
        norms = nets.gradient_norms()
        nets.scale_gradients(torch.tensor(rates, dtype=torch.float64))
        optimizer.step()
        for i, (net, other) in enumerate(zip(singles, others, strict=True)):
            other.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            own = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
            torch.testing.assert_close(norms[i], own)
            other.step()
    evaluated = nets.evaluate(x)
    for i, net in enumerate(singles):
        torch.testing.assert_close(evaluated[i], net.eval()(x[i]))
    right = [(net(x[i]).argmax(-1) == y[i]).double().mean() for i, net in enumerate(singles)]
    torch.testing.assert_close(nets.accuracy(x, y), torch.stack(right))


def test_a_network_that_became_nan_answers_nothing_and_harms_no_other():
    models = [nn.Linear(2, 3) for _ in range(2)]
    models[0].weight.data.fill_(math.nan)
    nets = SideBySide(models)
    x = torch.ones(2, 5, 2)
    y = models[1](x[1]).argmax(-1).expand(2, 5)
    assert nets.accuracy(x, y).tolist() == [0.0, 1.0]


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
        found = study.at_initialisation(kind, 8, seeds)
        assert np.log10(found.growth).mean() == pytest.approx(
            math.log10(study.theory_growth(kind, 8)), rel=0.15, abs=0.1
        )
        assert (found.gradient > 0).all()
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


CASES = [
    ("growth", {"agree": 6, "cells": 6}, "reproduced"),
    ("growth", {"agree": 4, "cells": 6}, "partly"),
    ("growth", {"agree": 2, "cells": 6}, "refuted"),
    ("distance", {"standard": 0.01, "uniform": 0.7}, "reproduced"),
    ("distance", {"standard": 0.1, "uniform": 0.7}, "partly"),
    ("distance", {"standard": 0.1, "uniform": 0.15}, "refuted"),
    ("standard-fails", {"accuracy": 0.1}, "reproduced"),
    ("standard-fails", {"accuracy": 0.8}, "refuted"),
    ("uniform-trains", {"accuracy": 0.96}, "reproduced"),
    ("uniform-trains", {"accuracy": 0.92}, "partly"),
    ("uniform-trains", {"accuracy": 0.8}, "refuted"),
    ("depth", {"difference": 0.0, "p_better": 0.5}, "reproduced"),
    ("depth", {"difference": -0.02, "p_better": 0.1}, "partly"),
    ("depth", {"difference": -0.02, "p_better": 0.01}, "refuted"),
    ("batch-norm", {"low": -0.005, "high": 0.03, "difference": 0.01}, "reproduced"),
    ("batch-norm", {"low": -0.02, "high": 0.03, "difference": 0.005}, "partly"),
    ("batch-norm", {"low": -0.04, "high": -0.01, "difference": -0.02}, "refuted"),
]


@pytest.mark.parametrize(("claim", "numbers", "verdict"), CASES)
def test_a_verdict_follows_from_the_numbers(claim, numbers, verdict):
    judge = {c.id: c.judge for c in study.CLAIMS}[claim]
    assert judge(numbers) == verdict


@pytest.mark.slow
def test_the_tiny_study_runs_and_reports(run_tiny):
    outcome = run_tiny("stable-resnet")
    assert not any(r.verdict == "not tested" for r in outcome.results)
    assert all(math.isfinite(v) for r in outcome.results for v in r.numbers.values())
    assert "Beside other cures" in outcome.report().to_html()
