import functools
from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from poise.curvature import Hessian, LossFunction, Supervised, as_objective, per_example_gradients
from poise.curvature.loss.batches import as_batches, count_examples, map_tensors, to_device
from poise.curvature.loss.criterion import as_criterion

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    ("data", "n"),
    [
        (X, 1),
        ((X, Y), 1),
        ([X, Y], 1),
        (Pair(X, Y), 1),
        ({"x": X, "labels": Y}, 1),
        (UserDict(x=X, labels=Y), 1),
        (({"x": X}, Y), 1),
        ([(X, Y), (X, Y)], 2),
        ([[X, Y], [X, Y], [X, Y]], 3),
        (((X, Y), (X, Y)), 2),
        ([{"x": X}, {"x": X}], 2),
        (({"x": X} for _ in range(4)), 4),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4), 2),
    ],
)
def test_what_is_a_batch_and_what_are_batches(data, n):
    assert len(as_batches(data)) == n


@pytest.mark.parametrize(
    "batch",
    [X, (X, Y), [X, Y], Pair(X, Y), {"x": X, "more": [Y, 3]}, UserDict(x=X), ({"x": X}, Y)],
    ids=["tensor", "tuple", "list", "namedtuple", "dict", "UserDict", "nested"],
)
def test_batches_of_all_kinds_move_as_copies_and_keep_their_type(batch):
    assert count_examples(batch) == 6
    assert to_device(batch, torch.device("cpu")) is batch
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    devices = []
    map_tensors(lambda t: devices.append(t.device.type) or t, moved)
    assert set(devices) == {"meta"}
    map_tensors(lambda t: devices.append(t.device.type) or t, batch)
    assert devices.count("cpu") == devices.count("meta")


def test_batches_without_examples_to_count():
    with pytest.raises(TypeError, match="n_examples"):
        count_examples({"name": "x"})
    with pytest.raises(TypeError, match="n_examples"):
        count_examples(torch.tensor(1.0))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, features, scale=1.0):
        @dataclass
        class Output:
            logits: torch.Tensor

        return Output(self.layer(features) * scale)


def test_ways_to_say_what_inputs_targets_and_outputs_are():
    torch.manual_seed(0)
    model = Named()
    expected = F.cross_entropy(model.layer(X), Y)
    ways = [
        (nn.CrossEntropyLoss(), (X, Y)),
        (F.cross_entropy, (X, Y)),
        (nn.CrossEntropyLoss(), {"features": X, "labels": Y}),
        (Supervised(nn.CrossEntropyLoss(), targets="y"), {"features": X, "y": Y}),
        (Supervised(nn.CrossEntropyLoss(), inputs="f", targets="y"), {"f": X, "y": Y, "unused": X}),
        (Supervised(nn.CrossEntropyLoss(), inputs=["features", "scale"], targets="y"),
         {"features": X / 2, "scale": torch.tensor(1.0), "y": Y}),
        (Supervised(nn.CrossEntropyLoss(), inputs=lambda b: (b[0], b[2]), targets=lambda b: b[1]), (X, Y, 1.0)),
        (Supervised(nn.CrossEntropyLoss(), outputs=lambda o: o.logits), (X, Y)),
        (lambda model, batch: F.cross_entropy(model(batch[0]).logits, batch[1]), (X, Y)),
    ]  # fmt: skip
    for loss_fn, batch in ways:
        objective = as_objective(loss_fn)
        loss = objective.loss(model, batch)
        if isinstance(batch, dict) and "scale" in batch:
            torch.testing.assert_close(loss, F.cross_entropy(model.layer(X / 2), Y))
        else:
            torch.testing.assert_close(loss, expected)
        assert objective.n_examples(batch) == 6
        assert objective.weight(batch) == 6


def test_mistakes_in_batches_say_what_is_wanted():
    ce = as_objective(nn.CrossEntropyLoss())
    with pytest.raises(KeyError, match=r"targets: .*keys \['x', 'y'\].*'labels'"):
        ce.targets({"x": X, "y": Y})
    with pytest.raises(TypeError, match=r"tuple of 3.*Supervised"):
        ce.targets((X, X, Y))
    with pytest.raises(KeyError, match=r"inputs.*'z'"):
        Supervised(nn.CrossEntropyLoss(), inputs="z").outputs(nn.Identity(), {"x": X})
    with pytest.raises(TypeError, match=r"tuple of 2.*no logits"):
        ce.outputs(lambda x: (x, x), (X, Y))


def test_objectives_pass_through_and_unknown_ones_are_refused():
    objective = LossFunction(lambda model, batch: batch.mean())
    assert as_objective(objective) is objective
    with pytest.raises(TypeError, match="got int"):
        as_objective(3)


@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (nn.MSELoss(), "mse"),
        (F.mse_loss, "mse"),
        (nn.CrossEntropyLoss(), "ce"),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), "ce"),
        (nn.BCEWithLogitsLoss(), "other"),
        (functools.partial(F.mse_loss, weight=None), "other"),
        (lambda o, t: (o - t).square().mean(), "other"),
    ],
)
def test_which_criteria_have_curvature_in_closed_form(criterion, kind):
    assert Supervised(criterion).curvature == kind


@settings(max_examples=30, deadline=None)
@given(
    smoothing=st.sampled_from([0.0, 0.2]),
    weighted=st.booleans(),
    ignored=st.booleans(),
    positions=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 1000),
)
def test_cross_entropy_of_any_shape(smoothing, weighted, ignored, positions, seed):
    generator = torch.Generator().manual_seed(seed)
    n, classes = 4, 5
    logits = torch.randn(n, classes, *positions, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (n, *positions), generator=generator)
    if ignored:
        targets[0] = -100
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    criterion = as_criterion(loss)
    v = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    gradient = torch.func.grad(lambda o: loss(o, targets))
    torch.testing.assert_close(criterion.hessian(logits, targets)(v), torch.func.jvp(gradient, (logits,), (v,))[1])
    torch.testing.assert_close(criterion.mean(logits, targets), loss(logits, targets))
    whole = criterion.example_sums(logits, targets, n).sum() / criterion.n_terms(targets, n)
    torch.testing.assert_close(whole, loss(logits, targets))


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.SmoothL1Loss(), nn.CrossEntropyLoss()], ids=str)
def test_gradients_of_examples_average_to_the_gradient(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = X.double()
    y = Y if isinstance(criterion, nn.CrossEntropyLoss) else torch.randn(6, 2).double()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(criterion(model(x), y), list(model.parameters()))])
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    chunks = list(per_example_gradients(model, batches, criterion, chunk_size=2))
    assert [len(c) for c in chunks] == [1, 2, 2, 1]
    torch.testing.assert_close(torch.cat(chunks).mean(0), expected)


def test_models_that_branch_on_their_data_are_gone_through_one_by_one():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            h = self.layer(x)
            return h.tanh() if x.sum() > 12 else h

    torch.manual_seed(0)
    model = Branching().double()
    x = X.double()
    found = torch.cat(list(per_example_gradients(model, (x, Y), nn.CrossEntropyLoss(), chunk_size=4)))
    rows = []
    for i in range(6):
        loss = F.cross_entropy(model(x[i : i + 1]), Y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    torch.testing.assert_close(found, torch.stack(rows))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        list(per_example_gradients(model, (x, Y), nn.CrossEntropyLoss(), chunk_size=0))


def test_unsupervised_losses_take_bare_tensors():
    model = nn.Linear(2, 2, bias=False).double()
    x = X.double()
    for data in (x, iter([x[:2], x[2:]])):
        hessian = Hessian(model, lambda model, batch: (model(batch) - batch).square().mean(), data).to_dense()
        torch.testing.assert_close(hessian, torch.kron(torch.eye(2).double(), x.T @ x / 6))
