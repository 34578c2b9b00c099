from collections import Counter

import pytest
import torch

from poise.continual import (
    LabelSwapStream,
    Task,
    blurred_boundaries,
    class_incremental,
    permuted_pixels,
    random_labels,
    rotate,
    rotated_images,
)


def data(n=100, classes=10, columns=16):
    y = torch.arange(n) % classes
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(n)) + y[:, None], y


def test_every_class_is_in_one_task():
    tasks = class_incremental(data(), data(50), 2)
    assert [t.classes for t in tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sum(map(len, tasks)) == 100
    assert set(tasks[2].y_test.tolist()) == {4, 5}
    shuffled = class_incremental(data(), data(50), [5, 3, 2], seed=3)
    assert sorted(c for t in shuffled for c in t.classes) == list(range(10))
    assert [len(t.classes) for t in shuffled] == [5, 3, 2]
    local = class_incremental(data(), data(50), 2, local_labels=True)
    assert all(t.classes == (0, 1) for t in local)
    assert torch.equal(local[1].x, tasks[1].x)
    for wrong in (3, [5, 4], 0):
        with pytest.raises(ValueError, match="per_task must divide"):
            class_incremental(data(), data(50), wrong)
    with pytest.raises(ValueError, match=r"none of \[5"):
        class_incremental(data(), data(50, classes=5), 2)


def test_four_quarter_turns_are_the_identity_and_one_is_rot90():
    x = torch.rand(3, 36)
    turned = rotate(x, 90)
    torch.testing.assert_close(turned.view(3, 6, 6), torch.rot90(x.view(3, 6, 6), 1, (1, 2)), atol=1e-5, rtol=0)
    for _ in range(3):
        turned = rotate(turned, 90)
    torch.testing.assert_close(turned, x, atol=1e-4, rtol=0)
    tasks = rotated_images((x, torch.arange(3)), (x, torch.arange(3)), (0, 60))
    assert [t.name for t in tasks] == ["0 degrees", "60 degrees"]
    assert torch.equal(tasks[0].x, x)
    with pytest.raises(ValueError, match="square"):
        rotate(torch.rand(2, 10), 30)


def test_permuted_columns_keep_the_values_and_the_first_is_as_it_is():
    train, test = data(), data(50)
    tasks = permuted_pixels(train, test, 3)
    assert torch.equal(tasks[0].x, train[0])
    for task in tasks[1:]:
        assert not torch.equal(task.x, train[0])
        assert torch.equal(task.x.sort(1).values, train[0].sort(1).values)
        column = (train[0] == task.x[:, :1]).all(0).nonzero().item()
        assert torch.equal(task.x_test[:, 0], test[0][:, column])
    assert torch.equal(permuted_pixels(train, test, 3)[2].x, tasks[2].x)
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        permuted_pixels(train, test, 0)


def test_random_labels_change_from_task_to_task():
    tasks = random_labels(torch.rand(1000, 3), 4, 3)
    assert not torch.equal(tasks[0].y, tasks[1].y)
    assert all(150 < count < 350 for t in tasks for count in Counter(t.y.tolist()).values())
    assert torch.equal(tasks[0].y, tasks[0].y_test)
    with pytest.raises(ValueError, match="classes must be at least 2"):
        random_labels(torch.rand(5, 3), 1, 3)


def test_blurred_boundaries_move_from_task_to_task():
    tasks = class_incremental(data(), data(50), 5)
    sharp = list(blurred_boundaries(tasks, 10, 8, blur=0))
    assert [task for task, _, _ in sharp] == [0] * 10 + [1] * 10
    assert all((y >= 5).all() == (task == 1) for task, _, y in sharp)
    fractions = torch.tensor([(y >= 5).double().mean() for _, _, y in blurred_boundaries(tasks, 50, 64, blur=0.3)])
    assert fractions[:10].mean() < 0.1 < 0.9 < fractions[-10:].mean()
    assert 0.3 < fractions[45:55].mean() < 0.7
    with pytest.raises(ValueError, match="blur not negative"):
        list(blurred_boundaries(tasks, 10, 8, blur=-1))


def test_swaps_are_transpositions_and_come_when_due():
    x, y = data(1000)
    stream = LabelSwapStream(x, y, every=100, batch=10, seed=1)
    batches = list(stream)
    assert len(batches) == 100
    assert [seen for seen, _, _ in stream.swaps] == list(range(100, 1001, 100))
    expected = torch.arange(10)
    for _, a, b in stream.swaps:
        first, second = expected == a, expected == b
        expected[first], expected[second] = b, a
    assert torch.equal(stream.labels, expected)
    assert sorted(stream.labels.tolist()) == list(range(10))
    assert LabelSwapStream(x, y, every=None).swaps == []
    stream._label = torch.arange(10)
    for _ in range(2):
        stream._label[[2, 5]] = stream._label[[5, 2]]
    assert torch.equal(stream._label, torch.arange(10))


def test_the_rate_of_swaps_may_change_with_the_epoch():
    x, y = data(100)
    stream = LabelSwapStream(x, y, every=[50, None], batch=10, epochs=3)
    assert len(list(stream)) == 30
    assert [seen for seen, _, _ in stream.swaps] == [50, 100, 250, 300]


def test_bad_input_is_named():
    x, y = data(20)
    with pytest.raises(ValueError, match="at least 2 classes"):
        LabelSwapStream(x, torch.zeros_like(y), 10)
    with pytest.raises(ValueError, match="batch, epochs and every"):
        LabelSwapStream(x, y, 0)
    with pytest.raises(TypeError, match="x must be a tensor"):
        Task([1], y, x, y)
    with pytest.raises(ValueError, match="one target for each training input"):
        Task(x, y[:3], x, y)
