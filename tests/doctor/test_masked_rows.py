"""Rows of a softmax in which everything is masked are those whose result is NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from poise.doctor.tap.masked_rows import masked_rows


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_they_are_the_rows_that_become_nan(dim):
    torch.manual_seed(0)
    scores = torch.randn(6, 5, 3).masked_fill(torch.rand(6, 5, 3) < 0.7, -math.inf)
    nan = scores.softmax(dim).isnan().all(dim)
    assert 0 < int(nan.sum()) < nan.numel()
    expected = {"masked_rows": int(nan.sum()), "rows": nan.numel()}
    assert masked_rows("softmax", (scores, dim), {}) == expected
    assert masked_rows("softmax", (scores,), {"dim": dim}) == expected
    assert masked_rows("softmax", (), {"input": scores, "dim": dim}) == expected


def test_a_mask_of_attention_is_examined():
    seen = torch.tensor([[False, False, True], [True, True, True]])  # True: not to be seen
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    made = attention(*[torch.randn(2, 3, 4)] * 3, key_padding_mask=seen)[0]
    assert made.isnan().flatten(1).any(1).tolist() == [False, True]
    assert masked_rows("multi_head_attention_forward", (), {"key_padding_mask": seen}) == {"masked_rows": 1, "rows": 2}


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("softmax", (torch.zeros(2, 3), 1)),
        ("softmax", (torch.full((2, 3), -1e9), 1)),
        ("softmax", (torch.full((2, 3), math.nan), 1)),
        ("softmax", (torch.full((2, 3), -math.inf),)),  # its dimension is not known
        ("softmax", ([1.0], 0)),
        ("log", (torch.full((2, 3), -math.inf), 1)),
    ],
)
def test_nothing_is_said_of_others(function, args):
    assert masked_rows(function, args, None) == {}
