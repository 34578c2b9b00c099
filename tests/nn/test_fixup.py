import math

import pytest
import torch
from torch import nn

from poise.nn import fixup_


@pytest.mark.parametrize("m", [1, 2, 3])
def test_weights_and_function(m):
    depth, width = 9, 300
    branches = [[nn.Linear(width, width) for _ in range(m)] for _ in range(depth)]
    head = nn.Linear(width, 4)
    fixup_(branches, head, torch.Generator().manual_seed(0))
    for *inner, last in branches:
        for layer in inner:
            expected = math.sqrt(2 / width) * depth ** (-1 / (2 * m - 2))
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert (layer.bias == 0).all()
        assert (last.weight == 0).all()
    assert (head(torch.randn(2, width)) == 0).all()


def test_branches_must_have_layers():
    with pytest.raises(ValueError, match="at least one layer each"):
        fixup_([[nn.Linear(2, 2)], []])
    with pytest.raises(ValueError, match="at least one layer each"):
        fixup_([])
