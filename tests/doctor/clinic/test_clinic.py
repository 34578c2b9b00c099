"""The clinic: unmodified scripts under `poise run`. Healthy ones stay silent; a fault's cause comes first."""

from __future__ import annotations

import numpy as np
import pytest

from poise.doctor.causes import CAUSES
from poise.store import read_run

from .faults import FAULTS, HEALTHY, SCRIPTS, Fault
from .judge import serious


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_healthy_script_stays_silent(script, seed, watch):
    result, findings = watch((HEALTHY / f"{script}.py").read_text(encoding="utf-8"), "--seed", str(seed))
    assert result.returncode == 0, result.stderr
    assert serious(findings) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", ["cnn", "mlp", "regression"])
def test_a_healthy_script_stays_silent_while_its_curvature_is_measured(script, watch, tmp_path):
    result, findings = watch((HEALTHY / f"{script}.py").read_text(encoding="utf-8"), "--epochs", "6", overhead=1.0)
    assert result.returncode == 0, result.stderr
    assert serious(findings) == []
    ratio = read_run(tmp_path / "run" / "run.db")["edge_ratio"]
    assert len(ratio.steps) >= 3
    assert np.median(ratio.values) < 1  # single samples of Adam's first steps are larger: second moments near zero


def test_every_cause_has_a_fault_in_the_clinic():
    contracts = {cause.id for cause in CAUSES.values() if cause.family == "contract"}  # ../contracts has theirs
    files = ("layer_statistics/cases.py", "agents/runs.py", "test_in_the_wild.py", "test_low_precision_state.py")
    cases = "".join((HEALTHY.parents[1] / name).read_text(encoding="utf-8") for name in files)
    elsewhere = {cause for cause in CAUSES if f'"{cause}"' in cases}  # have their faults there
    # A policy that collapses takes an agent minutes; facts of one are among those of all causes.
    assert {fault.cause for fault in FAULTS} | contracts | elsewhere | {"policy_collapse"} == set(CAUSES)


@pytest.mark.parametrize("fault", FAULTS, ids=Fault.label)
def test_edits_fit_their_scripts(fault: Fault):
    compile(fault.source(), fault.name, "exec")
    assert fault.args or fault.source() != (HEALTHY / f"{fault.script}.py").read_text(encoding="utf-8")


def test_no_script_mentions_poise():
    assert not [name for name in SCRIPTS if "poise" in (HEALTHY / f"{name}.py").read_text(encoding="utf-8")]
