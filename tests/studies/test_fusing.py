import math

import pytest
import torch
from torch import nn

from poise.studies import fusing as study


def rows(x):
    return {tuple(row.tolist()) for row in x}


def test_no_image_serves_twice():
    parts = study.split(0)
    upright = parts.rotations.x[: study.UNLABELLED]
    assert [len(x) for x in (upright, parts.labelled.x, parts.target.x, parts.test.x)] == [200, 400, 30, 600]
    sets = [rows(x) for x in (upright, parts.labelled.x, parts.target.x, parts.test.x)]
    assert len(set.union(*sets)) == sum(len(x) for x in (upright, parts.labelled.x, parts.target.x, parts.test.x))
    assert torch.equal(parts.target.y.bincount(), torch.full((10,), 3))
    assert all(len(set(classes)) == 5 for classes in parts.source_classes)


def test_rotations_turn_and_name_the_turns():
    x = torch.rand(3, 64)
    turned = study.rotated(x)
    assert torch.equal(turned.y, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]))
    torch.testing.assert_close(turned.x[3].view(8, 8), x[0].view(8, 8).rot90())
    torch.testing.assert_close(turned.x[9].view(8, 8).rot90(), x[0].view(8, 8))


def test_examples_of_some_classes_are_those_classes():
    some = study.split(1).labelled.of((2, 7))
    assert set(some.y.tolist()) == {2, 7}
    assert some.classes == (2, 7)


def test_a_network_trained_among_others_is_the_one_trained_alone():
    parts = study.split(0)
    examples = [parts.labelled.of(classes) for classes in parts.source_classes[:2]]
    states = [study.with_head(study.body(seed), seed) for seed in (0, 1)]
    both = study.train(states, examples, 5, [10, 11])
    alone = study.train(states[1:], examples[1:], 5, [11])
    for name, tensor in alone[0].items():
        torch.testing.assert_close(both[1][name], tensor)
        assert not torch.equal(tensor, states[1][name])


def test_training_is_that_of_torch_and_leaves_its_random_numbers_alone():
    before = torch.get_rng_state()
    parts = study.split(0)
    start = study.with_head(study.body(3), 3)
    (end,) = study.train([start], [parts.target], 4, [0], decay=0.5)
    assert torch.equal(before, torch.get_rng_state())
    model = study.network(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=study.LR, weight_decay=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(parts.target.x), parts.target.y).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(end[name], tensor, rtol=1e-4, atol=1e-5)


def test_heads_are_exchanged_and_bodies_kept():
    body = study.body(0)
    state = study.with_head(study.with_head(body, 1), 2, classes=4)
    assert state["4.weight"].shape == (4, 128)
    assert all(torch.equal(state[name], tensor) for name, tensor in body.items())


def test_starts_are_averages_of_the_sources():
    plan, splits = study.PLANS["tiny"], [study.split(0)]
    (start,) = study.make_starts(splits, plan, (0,))
    sources = [start.bodies[name] for name in study.SOURCE_NAMES]
    for name, fused in start.bodies["fused"].items():
        mean = torch.stack([own[name].double() for own in sources]).mean(0)
        torch.testing.assert_close(fused.double(), mean, atol=1e-6, rtol=0)
        half = (mean + start.bodies["pretrained"][name]) / 2
        torch.testing.assert_close(start.bodies["half of the way"][name].double(), half, atol=1e-6, rtol=0)
        rest = torch.stack([own[name].double() for own in sources[1:]]).mean(0)
        torch.testing.assert_close(start.bodies["fused without 0"][name].double(), rest, atol=1e-6, rtol=0)
    assert start.kin.kinship > 0.9 > 0.1 > start.strangers.kinship
    assert 1 / math.sqrt(5) <= start.kin.shrink <= 1


def test_a_model_has_no_barrier_to_itself():
    parts = study.split(0)
    state = study.with_head(study.body(0), 0)
    assert study.barrier(state, state, parts.labelled.of((1, 2))) == pytest.approx(0, abs=1e-6)
