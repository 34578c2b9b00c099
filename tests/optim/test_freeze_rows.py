import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from poise.optim import freeze_rows


@pytest.mark.parametrize(
    "make", [lambda p: AdamW(p, 0.1, weight_decay=0.1), lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.1)]
)
def test_frozen_rows_stay_bit_for_bit_and_the_others_move(make):
    torch.manual_seed(0)
    layer = nn.Linear(4, 5)
    optimizer = make(layer.parameters())
    x = torch.randn(8, 4)
    for _ in range(3):  # momentum from before
        layer(x).square().sum().backward()
        optimizer.step()
    before = [p.detach().clone() for p in layer.parameters()]
    frozen = freeze_rows(layer, [0, 2], optimizer)
    for _ in range(50):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    for old, new in zip(before, layer.parameters(), strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert not torch.equal(old[[1, 3, 4]], new[[1, 3, 4]])
    frozen.remove()
    layer(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before[0][0], layer.weight[0])


def test_a_scale_takes_that_fraction_of_the_step():
    torch.manual_seed(0)
    layer, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(layer.state_dict())
    start = layer.weight.detach().clone()
    x = torch.randn(8, 4)
    optimizers = [SGD(m.parameters(), 0.01) for m in (layer, twin)]
    freeze_rows(layer, [1], optimizers[0], scale=0.25)
    for model, optimizer in zip((layer, twin), optimizers, strict=True):
        model(x).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(layer.weight[1] - start[1], 0.25 * (twin.weight[1] - start[1]))
    assert torch.equal(layer.weight[0], twin.weight[0])


def test_bad_input_is_named():
    layer = nn.Linear(2, 3)
    optimizer = SGD(layer.parameters(), 0.1)
    with pytest.raises(TypeError, match="layer must be"):
        freeze_rows(nn.Conv1d(1, 1, 1), [0], optimizer)
    for rows in ([], [3], [-1]):
        with pytest.raises(ValueError, match="rows must be at least one of 0 to 2"):
            freeze_rows(layer, rows, optimizer)
    with pytest.raises(ValueError, match="scale must lie"):
        freeze_rows(layer, [0], optimizer, scale=1.0)
