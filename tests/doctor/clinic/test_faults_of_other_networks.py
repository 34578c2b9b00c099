"""Faults in scripts that train other networks: the cause comes first."""

from __future__ import annotations

import pytest

from .faults import FAULTS, Fault
from .judge import assert_cause_comes_first


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.script != "mlp"], ids=Fault.label)
def test_the_cause_of_a_fault_comes_first(fault: Fault, seed, watch, tmp_path):
    assert_cause_comes_first(fault, seed, watch, tmp_path)
