import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from poise.continual import ContinualEvaluator, Task, evaluation_report, gradient_parts, windowed_forgetting


def blobs(seed, classes, n=60):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat_interleave(n // len(classes))
    x = torch.randn(len(y), 6, generator=generator) + 3 * F.one_hot(y, 6)
    return x, y


@pytest.fixture
def tasks():
    return [Task(*blobs(2 * i, c), *blobs(2 * i + 1, c), name=f"t{i}") for i, c in enumerate([(0, 1), (2, 3), (4, 5)])]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 6))


def updates(model, optimizer, task, steps):
    for start in range(steps):
        x, y = task.x[start::steps], task.y[start::steps]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


def run(model, tasks, evaluator, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return evaluator.drive(model, lambda m, i: updates(m, optimizer, tasks[i], steps))


def test_every_update_of_every_task_is_in_the_array(tasks):
    history = run(network(), tasks, ContinualEvaluator(tasks, subset=None))
    assert history.accuracy.shape == (16, 3)
    assert history.steps.tolist() == list(range(16))
    assert history.trained.tolist() == [-1] + [0] * 5 + [1] * 5 + [2] * 5
    assert not math.isnan(history.accuracy[6, 0])  # the first update of task 2
    assert np.isnan(history.accuracy[:6, 1]).all()
    assert not np.isnan(history.accuracy[6:, 1]).any()
    assert history.exact


def test_scores_are_those_of_separate_evaluations(tasks):
    model = network()
    seen = []
    evaluator = ContinualEvaluator(tasks, subset=None, batch_size=50)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for i, task in enumerate(tasks):
        with evaluator.task(i, model):
            for _ in updates(model, optimizer, task, 3):
                evaluator.after_step(model)
                twin = copy.deepcopy(model).eval()
                seen.append([(twin(t.x_test).argmax(1) == t.y_test).double().mean().item() for t in tasks[: i + 1]])
    for row, wanted in zip(evaluator.history.accuracy[1:], seen, strict=True):
        assert row[: len(wanted)].tolist() == pytest.approx(wanted, abs=0)


def test_nothing_of_the_model_or_the_random_states_changes(tasks):
    model = network()
    model[3].eval()  # a module whose mode differs from the rest
    F.cross_entropy(model(tasks[0].x), tasks[0].y).backward()
    evaluator = ContinualEvaluator(tasks, subset=20)
    evaluator.begin_task(0, model)
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    states = random.getstate(), torch.get_rng_state()
    evaluator.after_step(model)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(before[1], model.parameters(), strict=True))
    assert modes == [m.training for m in model.modules()]
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


def test_training_is_the_same_with_and_without_evaluation(tasks):
    watched, alone = network(), network()
    torch.manual_seed(1)
    run(watched, tasks, ContinualEvaluator(tasks, subset=None))
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9)
    for task in tasks:
        for _ in updates(alone, optimizer, task, 5):
            pass
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_a_run_that_is_killed_and_resumed_is_the_uninterrupted_one(tasks, tmp_path):
    def train(model, optimizer, evaluator, start, end):
        for n in range(start, end):
            task = n // 4
            if n % 4 == 0 or n == start:
                evaluator.begin_task(task, model)
            _ = list(updates(model, optimizer, tasks[task], 1))
            evaluator.after_step(model)
            if n % 4 == 3:
                evaluator.end_task()

    def fresh(seed=0):
        model = network(seed)
        model[3] = nn.Identity()
        return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), ContinualEvaluator(tasks, subset=20)

    whole = fresh()
    train(*whole, 0, 12)
    parts = fresh()
    train(*parts, 0, 6)
    torch.save([part.state_dict() for part in parts], tmp_path / "checkpoint.pt")
    resumed = fresh(seed=9)
    for part, state in zip(resumed, torch.load(tmp_path / "checkpoint.pt"), strict=True):
        part.load_state_dict(state)
    train(*resumed, 6, 12)
    np.testing.assert_array_equal(whole[2].history.accuracy, resumed[2].history.accuracy)
    assert whole[2].history.trained.tolist() == resumed[2].history.trained.tolist()
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True))
    with pytest.raises(ValueError, match="evaluator of the tasks"):
        ContinualEvaluator(tasks[:2], subset=None).load_state_dict(whole[2].state_dict())


def test_the_last_update_of_a_task_is_evaluated_whatever_the_spacing(tasks):
    history = run(network(), tasks, ContinualEvaluator(tasks, every=3, before_first=False, subset=None))
    assert history.steps.tolist() == [3, 5, 6, 9, 10, 12, 15]
    ends = history.at_task_ends()
    assert ends.steps.tolist() == [5, 10, 15]
    assert ends.trained.tolist() == [0, 1, 2]
    evaluator = ContinualEvaluator(tasks, every=3, subset=None)
    evaluator.begin_task(0)
    evaluator.after_step(network())
    with pytest.raises(RuntimeError, match="was not evaluated"):
        evaluator.end_task()


def test_the_subset_is_fixed_by_the_seed(tasks):
    a, b, other = (ContinualEvaluator(tasks, subset=20, seed=s) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(a._data, b._data, strict=True))
    assert not all(torch.equal(x, y) for (x, _), (y, _) in zip(a._data, other._data, strict=True))
    with pytest.warns(UserWarning, match="fewer than 100 held-out"):
        assert ContinualEvaluator(tasks, subset=100)._exact


def test_any_metric_and_several_models(tasks):
    def negative_loss(outputs, targets):
        return -F.cross_entropy(outputs, targets)

    model, other = network(), network(1)
    evaluator = ContinualEvaluator(tasks, metric=negative_loss, subset=None)
    with evaluator.task("t0", {"raw": model, "other": other}):
        evaluator.after_step({"raw": model, "other": other})
    assert set(evaluator.histories) == {"raw", "other"}
    wanted = -F.cross_entropy(copy.deepcopy(other).eval()(tasks[0].x_test), tasks[0].y_test).item()
    assert evaluator.histories["other"].accuracy[1, 0] == pytest.approx(wanted, rel=1e-6)
    assert evaluator.history.metric == "negative_loss"
    evaluator.begin_task(0)
    with pytest.raises(ValueError, match="models must be those"):
        evaluator.after_step(model)


def test_the_report_has_the_curves_and_every_metric(tasks):
    history = run(network(), tasks, ContinualEvaluator(tasks, subset=None))
    report = evaluation_report(history)
    assert "minimum accuracy" in str(report.to_dict())
    assert "evaluations took" in str(report.to_dict())
    assert len(history.frame()) == 6 + 10 + 15
    assert history.summary()["windowed forgetting, 10"] == windowed_forgetting(history.accuracy, 10)
    low, high = history.interval(0.5, 0)
    assert low < 0.5 < high
    assert "16 evaluations in 15 updates" in _cost(tasks)


def _cost(tasks):
    evaluator = ContinualEvaluator(tasks, subset=None)
    run(network(), tasks, evaluator)
    return evaluator.cost()


def test_bad_input_is_named(tasks):
    evaluator = ContinualEvaluator(tasks, subset=None)
    with pytest.raises(RuntimeError, match="after_step must follow begin_task"):
        evaluator.after_step(network())
    with pytest.raises(RuntimeError, match="end_task must follow"):
        evaluator.end_task()
    with pytest.raises(RuntimeError, match="nothing was evaluated"):
        _ = evaluator.history
    with pytest.raises(ValueError, match="task must be one of"):
        evaluator.begin_task(7)
    evaluator.begin_task(0)
    with pytest.raises(RuntimeError, match="must end before another"):
        evaluator.begin_task(1)
    with pytest.raises(ValueError, match="a row for each of"):
        evaluator.after_step(Short())
    with pytest.raises(ValueError, match="held-out data"):
        ContinualEvaluator([(torch.zeros(0, 6), torch.zeros(0))])
    with pytest.raises(ValueError, match="held-out data"):
        Task(torch.ones(2, 1), torch.ones(2), torch.ones(0, 1), torch.ones(0))
    with pytest.raises(TypeError, match="must be a Task or a pair of tensors"):
        ContinualEvaluator(["mnist"])
    with pytest.raises(ValueError, match="names of their own"):
        ContinualEvaluator([tasks[0], tasks[0]])
    with pytest.raises(ValueError, match="every, batch_size and subset"):
        ContinualEvaluator(tasks, every=0, subset=None)
    bad = ContinualEvaluator(tasks, subset=None, metric=lambda outputs, targets: math.nan)
    bad.begin_task(0)
    with pytest.raises(ValueError, match=r"finite number.*step 1.*t0"):
        bad.after_step(network())


class Short(nn.Module):
    def forward(self, x):
        return x[:-1]


def test_gradients_of_parts_of_a_loss():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    losses = {"plasticity": 3 * weight[0], "stability": ((weight - weight.detach()) ** 2).sum(), "mixed": -weight.sum()}
    parts = gradient_parts([weight], losses)
    assert parts.norms["stability"] == 0  # a penalty on the change, before the first update
    assert parts.norms["plasticity"] == 3
    assert parts.cosines["plasticity", "mixed"] == pytest.approx(-math.sqrt(0.5))
    assert parts.cosines["plasticity", "stability"] == 0
    assert parts.ratio("stability", "plasticity") == 0
    assert parts.ratio("plasticity", "stability") == math.inf
    assert weight.grad is None
    with pytest.raises(ValueError, match="'constant' must depend"):
        gradient_parts([weight], {"constant": torch.tensor(1.0)})
