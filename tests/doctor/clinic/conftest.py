"""Run a script as a user would: in a process of its own, on one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def poise(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call the command line in a new process."""
    command = [sys.executable, "-m", "poise", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def watch(tmp_path):
    """Return a function that runs ``poise run`` on a script: ``watch(source, *args) -> (result, findings)``."""

    def run(source: str, *args: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
        script = tmp_path / "train.py"
        script.write_text(source, encoding="utf-8")
        result = poise("run", "--json", "--out", tmp_path / "run", script, *args, cwd=tmp_path)
        findings = tmp_path / "run" / "findings.json"
        assert findings.exists(), result.stderr
        assert (tmp_path / "run" / "report.html").exists()
        return result, json.loads(findings.read_text(encoding="utf-8"))

    return run
