"""Run a script as a user would: in a process of its own, on one thread."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.fixture
def watch(tmp_path, poise):
    """Return a function that runs ``poise run`` on a script: ``watch(source, *args) -> (result, findings)``.

    ``overhead`` is the share of the run's time that watching may cost.
    """

    def run(source: str, *args: str, overhead: float = 0.1) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
        script = tmp_path / "train.py"
        script.write_text(source, encoding="utf-8")
        # Samples cost seconds: on a busy machine the default would allow too few of them in so short a run.
        result = poise("run", "--json", "--overhead", overhead, "--out", tmp_path / "run", script, *args)
        findings = tmp_path / "run" / "findings.json"
        assert findings.exists(), result.stderr
        assert (tmp_path / "run" / "report.html").exists()
        return result, json.loads(findings.read_text(encoding="utf-8"))

    return run
