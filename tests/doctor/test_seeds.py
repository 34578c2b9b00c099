import random

import numpy as np
import torch

from poise.doctor.seeds import offset_seeds


def draw():
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002 - what scripts do
    torch.manual_seed(7)
    return random.random(), np.random.rand(), torch.rand(2).tolist(), np.random.default_rng(8).random()  # noqa: NPY002


def test_offset_zero_changes_nothing():
    expected = draw()
    with offset_seeds(0):
        assert draw() == expected


def test_offset_is_added_to_every_seed():
    with offset_seeds(100):
        shifted = draw()
    random.seed(105)
    np.random.seed(106)  # noqa: NPY002
    torch.manual_seed(107)
    rng = np.random.default_rng(108)
    assert shifted == (random.random(), np.random.rand(), torch.rand(2).tolist(), rng.random())  # noqa: NPY002


def test_a_script_that_does_not_seed_is_seeded():
    with offset_seeds(3):
        first = torch.rand(1), random.random()
    with offset_seeds(3):
        second = torch.rand(1), random.random()
    with offset_seeds(4):
        third = torch.rand(1), random.random()
    assert first == second
    assert first != third


def test_seeding_functions_are_put_back():
    before = torch.manual_seed, random.seed, np.random.default_rng
    with offset_seeds(1):
        assert torch.manual_seed is not before[0]
    assert (torch.manual_seed, random.seed, np.random.default_rng) == before
