"""Run scripts of the clinic, plainly or under the watch, one process each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.report import Finding
from poise.store import Record, read_run
from poise.studies.clinic.corpus import Case

TIMEOUT = 600  # seconds; the scripts take a few on a machine that does nothing else


@dataclass(frozen=True, slots=True)
class Curves:
    """What a log of the run would hold: one entry a step of the optimizer with most losses.

    A step without a value (a step of another optimizer, a step that was not sampled) has that of the step before.

    Args:
        loss: the loss.
        grad_norm: norm of the gradient.
        lr: learning rate.
    """

    loss: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    lr: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """A script after it ran.

    Args:
        case: name of the case.
        seed: its argument.
        code: exit code.
        score: what it printed last, higher is better; NaN if it printed none.
        cpu_seconds: of its process, without imports.
        output: what it printed.
        errors: what it wrote to stderr, without the watch's own lines.
        findings: what the watch found, first the likeliest; empty without watch.
        curves: of the watched run; ``None`` without watch, or if no step was seen.
        watch_seconds: CPU seconds that the watch took during the steps; 0 without watch.
    """

    case: str
    seed: int
    code: int
    score: float
    cpu_seconds: float
    output: str
    errors: str
    findings: tuple[Finding, ...] = ()
    curves: Curves | None = None
    watch_seconds: float = 0.0

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that ask for action: errors and warnings."""
        return tuple(f for f in self.findings if f.severity != "info")

    @property
    def steps(self) -> int:
        """Optimizer steps that were seen."""
        return 0 if self.curves is None else len(self.curves.loss)


class Server:
    """One :mod:`poise.studies.clinic.server`; use it from one thread."""

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise OSError("the clinic needs a system with fork (Linux or macOS)")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "poise.studies.clinic.server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, case: Case, seed: int, watched: bool = True) -> Run:
        """Run a script with a seed.

        Args:
            case: the script.
            seed: its argument.
            watched: under ``poise run`` with its default settings.

        Raises:
            RuntimeError: if the server ended.
        """
        with tempfile.TemporaryDirectory(prefix="clinic-") as name:
            folder = Path(name)
            (folder / "train.py").write_text(case.source, encoding="utf-8")
            arguments = ["run", "--json", "--out", str(folder / "run")] if watched else []
            order = {
                "arguments": [*arguments, "train.py", str(seed)],
                "watched": watched,
                "folder": name,
                "stdout": str(folder / "stdout"),
                "stderr": str(folder / "stderr"),
                "seconds": TIMEOUT,
            }
            answer = self._ask(order)
            output, errors = ((folder / f).read_text("utf-8", "replace") for f in ("stdout", "stderr"))
            return Run(
                case.name, seed, answer["code"], _score(output), answer["cpu_seconds"], output, errors,
                *(_watched(folder / "run") if watched else ()),
            )  # fmt: skip

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that runs the scripts ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Start a server, and end it at the end of the block."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


def _score(output: str) -> float:
    lines = [line for line in output.splitlines() if line.startswith("score: ")]
    return float(lines[-1].removeprefix("score: ")) if lines else float("nan")


def _watched(folder: Path) -> tuple[tuple[Finding, ...], Curves | None, float]:
    record = read_run(folder / "run.db")
    findings = folder / "findings.json"  # not there if the run was killed
    found = [Finding.from_dict(entry) for entry in json.loads(findings.read_text("utf-8"))] if findings.exists() else []
    return tuple(found), curves_of(record), float(record.meta.get("cost", {}).get("steps", {}).get("cpu", 0.0))


def curves_of(record: Record) -> Curves | None:
    """Return loss, gradient norm and learning rate of the timeline whose loss has most values, step by step."""
    timelines = [record.timeline(prefix) for prefix in record.timelines]
    longest = max(timelines, key=lambda timeline: len(timeline["loss"].steps))
    steps = longest["loss"].steps
    if not len(steps):
        return None

    def at_every_step(name: str) -> NDArray[np.float64]:
        series = longest[name]
        if not len(series.steps):
            return np.full(int(steps[-1]) + 1, np.nan)
        place = np.searchsorted(series.steps, np.arange(steps[-1] + 1), side="right") - 1
        return np.asarray(series.values[np.maximum(place, 0)], np.float64)

    return Curves(at_every_step("loss"), at_every_step("grad_norm"), at_every_step("lr"))
