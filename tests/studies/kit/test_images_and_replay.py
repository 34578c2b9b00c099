import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from poise.continual import ClassBalancedBuffer, ContinualEvaluator, ReservoirBuffer, Task
from poise.studies.kit import Measured, images
from poise.studies.kit.images import FASHION, on_fashion
from poise.studies.kit.replay import one_pass, random_batches, train_with_memory, weighted


def task(offset=0):
    x = torch.arange(20.0)[:, None] + offset
    return Task(
        x, (torch.arange(20) % 2) + 2 * (offset > 0), x, (torch.arange(20) % 2) + 2 * (offset > 0), f"t{offset}"
    )


def test_digits_take_the_place_of_images_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(images, "has_fashion_mnist", lambda: False)
    images.images.cache_clear()
    data = images.images(2000, 100)
    images.images.cache_clear()
    assert (len(data.train[0]), len(data.test[0]), data.pixels) == (1300, 100, 64)
    assert data.train[0].max() == 1
    measured = Measured("words", {"gap": 0.2}, {"gap": [0.1, 0.3]})
    assert on_fashion(FASHION, measured) is measured
    elsewhere = on_fashion(data.name, measured)
    assert elsewhere.numbers == {}
    assert "thresholds hold for Fashion-MNIST only" in elsewhere.text


def test_one_pass_meets_every_sample_once():
    batches = list(one_pass(task(), 4, torch.Generator().manual_seed(0), repeat=3))
    assert len(batches) == 15
    assert sorted(x.item() for batch, _ in batches[::3] for x in batch) == list(range(20))
    assert torch.equal(batches[0][0], batches[2][0])
    assert len(list(one_pass(task(), 4, torch.Generator(), most=8))) == 2


def test_the_weighted_loss_is_the_weighted_sum():
    torch.manual_seed(0)
    model = nn.Linear(1, 4)
    (x, y), (old_x, old_y) = ((t.x[:5], t.y[:5]) for t in (task(1), task()))
    loss = weighted(lambda k: 1 / (k + 1))
    assert loss(model, (x, y), None, 0).item() == F.cross_entropy(model(x), y).item()
    wanted = F.cross_entropy(model(x), y) / 3 + 2 * F.cross_entropy(model(old_x), old_y) / 3
    assert loss(model, (x, y), (old_x, old_y), 2).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("online", [False, True])
def test_the_memory_has_what_was_trained_on(online):
    model, tasks = nn.Linear(1, 4), [task(), task(100)]
    memory = ReservoirBuffer(1000) if online else ClassBalancedBuffer(1000)
    replayed = []

    def spy(k, new, old):
        replayed.append((k, new[0], None if old is None else old[0]))

    evaluator = ContinualEvaluator(tasks, subset=None, every=4)
    train_with_memory(
        model,
        SGD(model.parameters(), 1e-3),
        tasks,
        lambda t: random_batches(t, 6, 5, torch.Generator().manual_seed(0)),
        evaluator,
        memory=memory,
        online=online,
        before_step=spy,
    )
    assert evaluator.history.steps.tolist() == [0, 4, 6, 8, 12]
    assert len(memory) == (60 if online else 40)
    assert replayed[0][2] is None
    if online:
        assert set(replayed[1][2].flatten().tolist()) <= set(replayed[0][1].flatten().tolist())
    else:
        assert all(old is None for k, _, old in replayed if k == 0)
        assert all((old < 100).all() for k, _, old in replayed if k == 1)
