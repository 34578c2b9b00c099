"""The clinic: unmodified scripts under `poise run`. Healthy ones stay silent; a fault's cause comes first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from poise.doctor.causes import CAUSES

from .faults import FAULTS, HEALTHY, SCRIPTS, Fault


def _serious(findings):
    return [f for f in findings if f["severity"] != "info"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_healthy_script_stays_silent(script, seed, watch):
    result, findings = watch((HEALTHY / f"{script}.py").read_text(encoding="utf-8"), "--seed", str(seed))
    assert result.returncode == 0, result.stderr
    assert _serious(findings) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.cause}-{fault.name.replace(' ', '-')}")
def test_the_cause_of_a_fault_comes_first(fault: Fault, seed, watch, tmp_path):
    if fault.prepare:
        _run_unwatched(fault, tmp_path, "--seed", str(seed), *fault.prepare)
    result, findings = watch(fault.source(), "--seed", str(seed), *fault.args)
    assert result.returncode == 0, result.stderr
    assert _serious(findings), "nothing was found"
    first = _serious(findings)[0]
    assert first["cause"] == fault.cause
    assert first["severity"] in fault.severity
    assert first["evidence"]
    assert first["probability"] >= 0.5
    if fault.onset is not None:
        assert fault.onset[0] <= first["onset_step"] <= fault.onset[1]
    if fault.where:
        assert any(part in name for part in fault.where for name in first["where"])


def test_every_cause_has_a_fault_in_the_clinic():
    assert {fault.cause for fault in FAULTS} == set(CAUSES)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_edits_fit_their_scripts(fault: Fault):
    compile(fault.source(), fault.name, "exec")
    assert fault.args or fault.source() != (HEALTHY / f"{fault.script}.py").read_text(encoding="utf-8")


def test_no_script_mentions_poise():
    assert not [name for name in SCRIPTS if "poise" in (HEALTHY / f"{name}.py").read_text(encoding="utf-8")]


def _run_unwatched(fault: Fault, folder, *args: str) -> None:
    script = folder / "first.py"
    script.write_text(fault.source(), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, *args], cwd=folder, env=environment, check=True, capture_output=True)
