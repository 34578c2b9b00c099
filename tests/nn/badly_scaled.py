"""Networks that begin at a wrong scale, and whether they train: for the tests of initialisers."""

import torch
from torch import nn

from poise.data import load_digits, standardize
from poise.nn.mlp import mlp


def deep(scale, seed):
    """Four layers with He's weights times a factor."""
    torch.manual_seed(seed)
    model = mlp((64, 48, 48, 48, 10), nn.ReLU)
    with torch.no_grad():
        for layer in model[::2]:
            nn.init.kaiming_normal_(layer.weight).mul_(scale)
            layer.bias.zero_()
    return model


def digits():
    """The first 600, standardised."""
    data = load_digits()
    (x,) = standardize(data.inputs[:600])
    return x, data.targets[:600]


def accuracy_after_training(model, steps, lr):
    """On the digits it was trained on, by SGD with momentum."""
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for i in range(steps):
        rows = torch.arange(64 * i, 64 * (i + 1)) % 600
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()
