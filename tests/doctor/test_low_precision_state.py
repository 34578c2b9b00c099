"""A second moment in half precision: what of it cannot fall, and whether that has an effect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poise.doctor.diagnose import diagnose

STEPS = 1400  # more than twice the 500 that beta2 = 0.998 looks back


def falling_gradients(watching, dtype, beta2, falls=True):
    """Train on a loss whose gradients become fifty times smaller after 100 steps, and return findings and record."""
    torch.manual_seed(0)
    model = nn.Linear(16, 4, bias=False).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, beta2), weight_decay=0.0)
    with watching(0.3) as watched:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 16, dtype=dtype)).float().square().mean()
            (loss * (0.02 if falls and step > 100 else 1.0)).backward()
            optimizer.step()
    assert watched.tap.fault is None
    return [f.cause for f in diagnose(watched.record) if f.cause == "lowprec_state"], watched.record


def test_a_second_moment_that_cannot_fall_is_named(watching):
    found, record = falling_gradients(watching, torch.bfloat16, 0.998)
    assert found == ["lowprec_state"]
    assert record["second_moment_stuck"].values[-1] > 0.9


@pytest.mark.parametrize(
    ("dtype", "beta2", "falls"),
    [(torch.float32, 0.998, True), (torch.bfloat16, 0.95, True), (torch.bfloat16, 0.998, False)],
)
def test_one_that_falls_or_need_not_is_none(dtype, beta2, falls, watching):
    found, record = falling_gradients(watching, dtype, beta2, falls)
    assert found == []
    if dtype is torch.float32:
        assert not len(record["second_moment_stuck"].steps)
    elif beta2 < 0.998:
        assert record["second_moment_stuck"].values[-1] < 0.1


def test_the_arithmetic():
    """In bfloat16 a factor of 1 - 2^-9 or nearer to 1 is rounded away."""
    numbers = torch.rand(1000).bfloat16() + 0.01
    assert bool((numbers * 0.999 == numbers).all())
    assert not bool((numbers * 0.99 == numbers).any())
