"""Which weights follow one another, read from the graph of a loss."""

import torch
from torch import nn

from poise.doctor.probes.chains import weight_chains


def chains(model, loss):
    return weight_chains(loss.grad_fn, {id(p): name for name, p in model.named_parameters()})


def test_layers_in_a_row_are_one_chain():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    assert chains(model, model(torch.randn(5, 3)).mean()) == [["0.weight", "2.weight", "4.weight"]]


def test_towers_side_by_side_are_chains_of_their_own():
    model = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for name in ("pi", "v")})
    x = torch.randn(5, 3)
    loss = model["pi"](x).mean() + model["v"](x).square().mean()
    assert sorted(chains(model, loss)) == [["pi.0.weight", "pi.2.weight"], ["v.0.weight", "v.2.weight"]]


def test_two_heads_share_their_trunk():
    model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "pi": nn.Linear(4, 2), "v": nn.Linear(4, 1)})
    h = model["trunk"](torch.randn(5, 3)).tanh()
    loss = model["pi"](h).mean() + model["v"](h).mean()
    assert sorted(chains(model, loss)) == [["trunk.weight", "pi.weight"], ["trunk.weight", "v.weight"]]


def test_a_residual_connection_keeps_the_order():
    model = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    x = torch.randn(5, 4)
    for layer in model:
        x = x + layer(x)
    assert chains(model, x.mean()) == [["0.weight", "1.weight", "2.weight"]]


def test_a_loss_without_a_graph_has_none():
    assert weight_chains(None, {}) == []
