"""The first NaN is traced to the operation, module and line that made it."""

import linecache

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Middle(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class Branch(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.m = Middle(make)
        self.after = nn.Linear(4, 4)

    def forward(self, x):
        return self.after(self.m(x))


class Model(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.ModuleList([nn.Identity(), Branch(make)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.b[1](self.b[0](self.a(x))))


def train(model, loss_of, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model(torch.randn(8, 4))).backward()
        optimizer.step()


def logarithm(x):
    return torch.log(x)  # of negative numbers


def division(x):
    return x / (x - x.detach()).detach()


def masked_attention(x):
    logits = x.unsqueeze(-1) @ x.unsqueeze(-2)
    mask = torch.ones(4, 4).triu(1).bool()
    mask[2] = True  # one query may see nothing
    return logits.masked_fill(mask, -torch.inf).softmax(-1).sum(-1) + x


@pytest.mark.parametrize(
    ("make", "op"),
    [(logarithm, "log"), (division, "div"), (masked_attention, "softmax")],
    ids=["log", "div", "softmax"],
)
def test_first_nonfinite_of_the_forward_pass(make, op, watching):
    with watching() as watched:
        train(Model(make), lambda y: y.square().mean())
    (event,) = watched.record.events("nonfinite_forward")
    assert event.payload["module"] == "b.1.m"
    assert op in event.payload["op"]
    assert event.payload["where"] == "model"
    file, _, line = event.payload["source"].rpartition(":")
    source = linecache.getline(file, int(line))
    assert {"log": "torch.log(x)", "div": "x / (x", "softmax": ".softmax(-1)"}[op] in source
    assert watched.record.events("nonfinite_forward")[0].step == 0


def test_nonfinite_made_between_model_and_loss(watching):
    with watching() as watched:
        train(Model(lambda x: x), lambda y: -torch.log(y).mean())
    (event,) = watched.record.events("nonfinite_forward")
    assert event.payload["where"] == "loss"
    assert event.payload["op"] == "log"
    file, _, line = event.payload["source"].rpartition(":")
    assert "torch.log(y)" in linecache.getline(file, int(line)) or "backward" in linecache.getline(file, int(line))


def test_nonfinite_input_is_no_fault_of_the_model(watching):
    model = Model(lambda x: x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching() as watched:
        for _ in range(3):
            x = torch.randn(8, 4)
            x[2, 1] = torch.nan
            F.mse_loss(model(x), torch.zeros(8, 2)).backward()
            optimizer.step()
    (event,) = watched.record.events("nonfinite_forward")
    assert event.payload["op"] == "the input batch"
    assert watched["input_nonfinite"].values[-1] == 1


def root_at_zero(x):
    return torch.sqrt((x * 0).square())  # finite itself; its derivative at 0 is not


def where_trap(x):
    return torch.where(x.abs() < 1e9, x, torch.log(x * 0))


@pytest.mark.parametrize(
    ("make", "op", "text"),
    [(root_at_zero, "sqrt", "torch.sqrt("), (where_trap, "log", "torch.log(")],
    ids=["sqrt", "log"],
)
def test_first_nonfinite_of_the_backward_pass(make, op, text, watching):
    model = Model(make)
    with watching() as watched:
        train(model, lambda y: y.square().mean())
    (event,) = watched.record.events("nonfinite_backward")
    assert event.payload["module"] == "b.1.m"
    assert op in event.payload["op"]
    assert set(event.payload["parameters"]) == {"a.weight", "a.bias"}
    file, _, line = event.payload["source"].rpartition(":")
    assert text in linecache.getline(file, int(line))


def test_the_search_for_the_origin_changes_nothing(watching):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Middle(torch.log), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            loss = model(torch.randn(8, 4)).nan_to_num().mean() * torch.inf
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict(), torch.rand(2)

    bare, randomness = run()
    with watching() as watched:
        seen, after = run()
    assert watched.tap.fault is None
    assert torch.equal(randomness, after)
    for name, value in bare.items():
        assert torch.equal(value.nan_to_num(), seen[name].nan_to_num()), name
