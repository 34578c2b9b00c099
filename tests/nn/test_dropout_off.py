import pytest
import torch
from torch import nn

from poise.nn.dropout_off import dropout_off


def net():
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.TransformerEncoderLayer(16, 2), nn.ReLU()
    )


def test_only_batch_norms_that_train_stay_in_training():
    model = net()
    with dropout_off(model):
        assert [m.training for m in model] == [False, True, False, False, False]
        assert not any(m.training for m in model[3].modules())
        x = torch.randn(10, 8)
        assert torch.equal(model(x), model(x))
        assert model[:2](x).mean(0).abs().max() < 1e-5
    assert all(m.training for m in model.modules())


def test_modes_come_back_as_they_were_after_an_error_too():
    model = net()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), dropout_off(model):
        1 / 0  # noqa: B018
    assert [m.training for m in model.modules()] == modes
    with dropout_off(model):
        assert not any(m.training for m in model.modules())
