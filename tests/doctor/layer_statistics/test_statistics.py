"""What the causes that are statistics find in small trainings, and where they are silent."""

from __future__ import annotations

import pytest
import torch

import poise

from .cases import CASES

PARTS = ("faulty", "repaired", "near", "nearest")


def findings(training, folder, seed=0):
    torch.manual_seed(seed)
    model, optimizer, train = training()
    with poise.watch(model, optimizer, folder, overhead=1.0) as run:
        train()
    return run.findings


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_first(name, tmp_path):
    cause, faulty, *_ = CASES[name]
    found = findings(faulty, tmp_path / "run")
    assert found, "nothing was found"
    assert (found[0].cause, found[0].severity != "info") == (cause, True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part", [1, 2, 3], ids=PARTS[1:])
def test_its_repair_and_what_comes_near_are_silent(name, part, tmp_path):
    found = findings(CASES[name][1 + part], tmp_path / "run")
    assert [f.cause for f in found if f.severity != "info"] == []
