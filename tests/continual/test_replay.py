import copy

import numpy as np
import pytest
import torch

from poise.continual import ClassBalancedBuffer, ReservoirBuffer


def test_every_sample_of_the_stream_is_kept_equally_often():
    """N = 100, M = 10, 5,000 seeds: inclusion 0.1 within three standard errors of a frequency."""
    x = torch.arange(100)
    counts = torch.zeros(100)
    for seed in range(5000):
        memory = ReservoirBuffer(10, seed=seed)
        for part in x.split(25):
            memory.add(part)
        counts[memory.all()[0]] += 1
    frequency = counts / 5000
    assert frequency.sum().item() == pytest.approx(10)
    assert (frequency - 0.1).abs().max() < 0.013


def test_sample_by_sample_is_batch_by_batch():
    one, many = ReservoirBuffer(7, seed=3), ReservoirBuffer(7, seed=3)
    x = torch.arange(50.0)
    for value in x:
        one.add(value[None])
    for part in x.split(13):
        many.add(part)
    assert len(one) == len(many) == 7
    assert one.seen == many.seen == 50
    assert torch.equal(one.all()[0].sort().values, many.all()[0].sort().values)


def test_samples_are_distinct_while_there_are_enough():
    memory = ReservoirBuffer(20)
    memory.add(torch.arange(20), torch.arange(20) % 3)
    x, y = memory.sample(20)
    assert sorted(x.tolist()) == list(range(20))
    assert torch.equal(x % 3, y)
    assert len(memory.sample(50)[0]) == 50


@pytest.mark.parametrize("make", [ReservoirBuffer, ClassBalancedBuffer])
def test_a_resumed_memory_goes_on_bit_for_bit(make, tmp_path):
    def feed(memory, start, end):
        for i in range(start, end):
            y = torch.arange(6) % (2 + i // 4)
            memory.add(torch.full((6, 2), float(i)) + y[:, None] / 10, y)

    whole, first, second = make(12, seed=1), make(12, seed=1), make(12, seed=9)
    feed(whole, 0, 20)
    feed(first, 0, 11)
    torch.save(first.state_dict(), tmp_path / "memory.pt")
    if make is ClassBalancedBuffer:
        second.seed = 1  # the seed is an argument of the run, not a part of its state
    second.load_state_dict(torch.load(tmp_path / "memory.pt"))
    feed(second, 11, 20)
    for a, b in zip((*whole.all(), *whole.sample(5)), (*second.all(), *second.sample(5)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="memory of"):
        make(5).load_state_dict(copy.deepcopy(whole.state_dict()))


def test_classes_share_the_room_evenly():
    memory = ClassBalancedBuffer(30)
    memory.add(torch.arange(100.0), torch.zeros(100, dtype=torch.long))
    assert memory.counts == {0: 30}
    memory.add(torch.arange(100.0, 200), torch.full((100,), 7))
    assert memory.counts == {0: 15, 7: 15}
    memory.add(torch.arange(200.0, 205), torch.full((5,), 3))
    assert memory.counts == {0: 10, 3: 5, 7: 10}
    x, y = memory.all()
    assert ((x < 100) == (y == 0)).all()
    x, y = memory.sample(3000)
    counts = y.bincount()[[0, 3, 7]]
    assert (counts.double() / 3000 - 1 / 3).abs().max() < 0.04
    assert len(memory.sample(20, balanced=False)[0].unique()) == 20


def test_a_class_that_loses_room_keeps_a_uniform_sample():
    counts = np.zeros(40)
    for seed in range(1500):
        memory = ClassBalancedBuffer(16, seed=seed)
        memory.add(torch.arange(20), torch.zeros(20, dtype=torch.long))
        memory.add(torch.arange(3), torch.ones(3, dtype=torch.long))
        memory.add(torch.arange(20, 40), torch.zeros(20, dtype=torch.long))
        x, y = memory.all()
        counts[x[y == 0].numpy()] += 1
    frequency = counts / 1500
    assert frequency.sum() == pytest.approx(8)
    assert abs(frequency[:20].mean() - 0.2) < 0.01
    assert np.abs(frequency - 0.2).max() < 0.05


def test_bad_input_is_named():
    for make in (ReservoirBuffer, ClassBalancedBuffer):
        with pytest.raises(ValueError, match="size must be at least 1"):
            make(0)
        with pytest.raises(ValueError, match="memory not empty"):
            make(3).sample(2)
    memory = ReservoirBuffer(3)
    with pytest.raises(ValueError, match="one length"):
        memory.add(torch.zeros(3), torch.zeros(2))
    memory.add(torch.zeros(3))
    with pytest.raises(ValueError, match="columns must be the 1"):
        memory.add(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="number of classes, 4"):
        ClassBalancedBuffer(3).add(torch.zeros(4), torch.arange(4))
