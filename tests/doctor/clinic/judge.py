"""What must be found in a script with a fault in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .faults import Fault


def serious(findings: list[dict]) -> list[dict]:
    return [f for f in findings if f["severity"] != "info"]


def assert_cause_comes_first(fault: Fault, seed: int, watch, folder: Path) -> None:
    """Run the script with its fault, and compare what is found first with what was done to it."""
    if fault.prepare:
        _run_unwatched(fault, folder, "--seed", str(seed), *fault.prepare)
    result, findings = watch(fault.source(), "--seed", str(seed), *fault.args, overhead=fault.overhead)
    assert result.returncode == 0, result.stderr
    if fault.severity == ("info",):
        assert serious(findings) == []  # nothing to be treated, and nothing that would be
    else:
        assert serious(findings), "nothing was found"
    first = findings[0]
    assert first["cause"] in (fault.cause, fault.also)
    assert first["severity"] in fault.severity
    assert first["evidence"]
    assert first["probability"] >= 0.5
    if fault.onset is not None:
        assert fault.onset[0] <= first["onset_step"] <= fault.onset[1]
    if fault.where:
        assert any(part in name for part in fault.where for name in first["where"])


def _run_unwatched(fault: Fault, folder: Path, *args: str) -> None:
    script = folder / "first.py"
    script.write_text(fault.source(), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, *args], cwd=folder, env=environment, check=True, capture_output=True)
