import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW

from poise.optim import HomeostaticLR


def stream(batches=20, batch=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        y = torch.randint(4, (batch,), generator=generator)
        yield torch.randn(batch, 6, generator=generator) + 2 * F.one_hot(y, 6), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ELU(), nn.Linear(12, 4))


def train(model, optimizer, control=None, batches=20):
    for x, y in stream(batches):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if control is not None:
            control.observe(x, y)
        optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_without_a_decision_it_is_plain_sgd_bit_for_bit():
    runs = []
    for controlled in (True, False):
        model = network()
        optimizer = SGD(model.parameters(), 0.1)
        control = HomeostaticLR(optimizer, model, effect=lambda c: 1, interval=10_000) if controlled else None
        train(model, optimizer, control)
        runs.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_trial_changes_neither_parameters_nor_gradients_nor_random_states():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    control = HomeostaticLR(optimizer, model, effect=lambda c: 1, memory=10)
    batches = list(stream(3))
    control.observe(*batches[0])
    F.cross_entropy(model(batches[1][0]), batches[1][1]).backward()
    before, grads, state = weights(model), [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    control.observe(*batches[1])
    assert len(control.history) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_the_rate_is_the_sum_of_what_was_accepted():
    model = network()
    optimizer = SGD(model.parameters(), 0.02)
    control = HomeostaticLR(optimizer, model, effect={0: -1, 1: -1, 2: 1, 3: 1})
    train(model, optimizer, control, batches=60)
    rates = [0.02, *(trial.lr for trial in control.history)]
    moves = [round((b - a) / 0.002) for a, b in itertools.pairwise(rates)]
    assert set(moves) <= {-1, 0, 1}
    assert any(moves)
    for trial, move in zip(control.history, moves, strict=True):
        assert trial.accepted == (trial.accuracy_take > trial.accuracy_leave)  # equal accuracies leave the rate
        assert trial.accepted or move == 0
    assert control.lr == pytest.approx(0.02 * (1 + sum(moves) / 10))


def test_no_effect_leaves_the_rate():
    model = network()
    optimizer = SGD(model.parameters(), 0.02)
    train(model, optimizer, HomeostaticLR(optimizer, model, effect=lambda c: 0))
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_the_rate_stays_within_its_bounds():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    control = HomeostaticLR(optimizer, model, effect=lambda c: -1, step=0.9, max_lr=0.12)
    control._set(0.05)
    assert control._bounded(0.05 - 0.09) == 1e-8
    assert control._bounded(0.2) == 0.12


def test_a_constant_prediction_proposes_one_direction():
    model = network()
    with torch.no_grad():
        model[2].bias[3] = 100.0
    optimizer = SGD(model.parameters(), 1e-4)
    control = HomeostaticLR(optimizer, model, effect={0: -1, 1: -1, 2: -1, 3: 1})
    train(model, optimizer, control)
    assert {trial.guess for trial in control.history} == {3}


def test_a_free_search_finds_that_a_tiny_rate_should_grow():
    model = network()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}], 0.005)
    control = HomeostaticLR(optimizer, model, effect="free", step=0.9, memory=40)
    train(model, optimizer, control, batches=100)
    assert control.lr > 0.005
    assert optimizer.param_groups[1]["lr"] / control.lr == pytest.approx(2)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    control = HomeostaticLR(optimizer, model, effect=lambda c: 1, memory=10)
    batches = list(stream(2))
    control.observe(*batches[0])
    (model(batches[1][0]).sum() * float("nan")).backward()
    control.observe(*batches[1])
    assert (control.skipped, control.history) == (1, [])


def test_a_resumed_run_is_the_uninterrupted_one():
    def fresh():
        model = network()
        optimizer = AdamW(model.parameters(), 0.01)
        return model, optimizer, HomeostaticLR(optimizer, model, effect=lambda c: 1 if c > 1 else -1)

    batches = list(stream(30))

    def go(parts, chosen):
        model, optimizer, control = parts
        for x, y in chosen:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            control.observe(x, y)
            optimizer.step()

    whole = fresh()
    go(whole, batches)
    first = fresh()
    go(first, batches[:13])
    second = fresh()
    for part, other in zip(second, first, strict=True):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    go(second, batches[13:])
    assert all(torch.equal(a, b) for a, b in zip(weights(whole[0]), weights(second[0]), strict=True))
    assert whole[2].lr == second[2].lr


def test_bad_input_is_named():
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    for wrong in ({"step": 0.0}, {"step": 1.0}, {"interval": 0}, {"memory": 0}):
        with pytest.raises(ValueError, match="must"):
            HomeostaticLR(optimizer, model, effect=lambda c: 1, **wrong)
    with pytest.raises(ValueError, match="effect must be -1, 0 or 1"):
        HomeostaticLR(optimizer, model, effect={0: 2})
    with pytest.raises(KeyError, match="none for"):
        train(model, optimizer, HomeostaticLR(optimizer, model, effect={9: 1}))
    with pytest.raises(ValueError, match="got 3 for class"):
        train(model, optimizer, HomeostaticLR(optimizer, model, effect=lambda c: 3))
    control = HomeostaticLR(optimizer, model, effect=lambda c: 1, memory=10)
    optimizer.zero_grad()
    x, y = next(stream())
    control.observe(x, y)
    with pytest.raises(RuntimeError, match="no gradients"):
        control.observe(x, y)
