"""The runs of a trial: started, reused when they are finished, and read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from poise.doctor.trial.plan import Arm, Plan
from poise.report import Finding
from poise.store import Record, RunFileError, read_run

_MARKER = "arm.json"
_SECONDS_TO_END = 5.0


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one run left behind.

    Args:
        arm: which run it was.
        folder: where its files are: ``run/run.db``, ``run/findings.json``, ``stdout.txt``, ``stderr.txt``.
        exit_code: of the script; negative if a signal ended it.
        error: last lines of its stderr if it failed, else empty.
        record: its numbers; ``None`` if it left none.
        findings: what was found in it.
    """

    arm: Arm
    folder: Path
    exit_code: int
    error: str
    record: Record | None
    findings: tuple[Finding, ...]

    @property
    def steps(self) -> int:
        """Number of steps with a loss."""
        loss = None if self.record is None else self.record["loss"]
        return int(loss.steps[-1]) + 1 if loss is not None and len(loss) else 0

    @property
    def dropped(self) -> str:
        """Why poise dropped a remedy during the run, which then went on untreated; empty if it did not."""
        failures = [] if self.record is None else self.record.events("remedy_failed")
        return str(failures[0].payload.get("error", "no reason given")) if failures else ""

    @property
    def failed(self) -> str:
        """How the script failed, in a sentence; empty if it did not."""
        if not self.exit_code:
            return ""
        last = self.error.strip().splitlines()[-1:] or ["nothing on stderr"]
        return f"{self.arm.name}, seed {self.arm.seed}, ended with exit code {self.exit_code}: {last[0]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; the numbers stay in the folder."""
        run = {"name": self.arm.name, "seed": self.arm.seed, "folder": str(self.folder)}
        return {**run, "exit_code": self.exit_code, "steps": self.steps}


Runner = Callable[[Arm, Path], int]
Progress = Callable[[int, int, ArmResult], None]


def run_arms(plan: Plan, out: Path, runner: Runner, n_jobs: int, progress: Progress | None = None) -> list[ArmResult]:
    """Run all arms of a plan, or read those that are finished already; arguments and errors as for `carry_out`."""
    arms = plan.arms
    for arm in arms:
        _require_ours(_folder(out, arm))
    finished: dict[Arm, ArmResult] = {}
    # Threads suffice: each of them only waits for a process.
    parallel = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator_unordered")
    for arm, exit_code in parallel(delayed(_run_or_reuse)(plan, arm, _folder(out, arm), runner) for arm in arms):
        finished[arm] = read_arm(arm, _folder(out, arm), exit_code)
        if progress is not None:
            progress(len(finished), len(arms), finished[arm])
    return [finished[arm] for arm in arms]


def read_arm(arm: Arm, folder: Path, exit_code: int) -> ArmResult:
    """Read what a run left in its folder."""
    error = _tail(folder / "stderr.txt") if exit_code else ""
    try:
        record: Record | None = read_run(folder / "run" / "run.db")
    except (RunFileError, FileNotFoundError) as fault:
        record, error = None, error or str(fault)
    return ArmResult(arm, folder, exit_code, error, record, _read_findings(folder / "run" / "findings.json"))


def _folder(out: Path, arm: Arm) -> Path:
    return out / arm.name / f"seed-{arm.seed}"


def _run_or_reuse(plan: Plan, arm: Arm, folder: Path, runner: Runner) -> tuple[Arm, int]:
    key = {
        "script": plan.script,
        "sha256": plan.sha256,
        "args": list(plan.args),
        "module": plan.module,
        "remedies": list(arm.remedies),
        "seed": arm.seed,
    }
    marker = _read_marker(folder)
    # A run that a signal ended (out of memory, say) may go better the next time.
    if marker is not None and marker["key"] == key and marker["exit_code"] is not None and marker["exit_code"] >= 0:
        return arm, int(marker["exit_code"])
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_marker(folder, key, None)
    exit_code = runner(arm, folder)
    _write_marker(folder, key, exit_code)
    return arm, exit_code


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return marker if isinstance(marker, dict) and {"key", "exit_code"} <= marker.keys() else None


def _write_marker(folder: Path, key: dict[str, Any], exit_code: int | None) -> None:
    draft = folder / f"{_MARKER}.tmp"
    draft.write_text(json.dumps({"key": key, "exit_code": exit_code}, indent=1), encoding="utf-8")
    draft.replace(folder / _MARKER)


def _require_ours(folder: Path) -> None:
    foreign = folder.is_dir() and _read_marker(folder) is None and any(folder.iterdir())
    if foreign or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"out must be a folder for this trial alone, but {str(folder)!r} holds something else")


def run_script(children: Children, plan: Plan, arm: Arm, folder: Path) -> int:
    """Run the script once under ``poise run`` and return its exit code."""
    options = ["--quiet", "--json", "--seed", str(arm.seed), "--out", str(folder / "run")]
    for spec in arm.remedies:
        options += ["--remedy", spec]
    target = ["-m", plan.script] if plan.module else [plan.script]
    return children.run([sys.executable, "-m", "poise", "run", *options, *target, *plan.args], folder)


class Children:
    """The processes of a trial; leaving the context with an error or an interrupt ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __reduce__(self) -> tuple[type[Children], tuple[()]]:
        return Children, ()  # a worker in another process has children of its own

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stop()

    def run(self, command: list[str], folder: Path) -> int:
        """Run a command to its end and return its exit code; its output goes to files in ``folder``."""
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (folder / "stdout.txt").open("wb") as stdout, (folder / "stderr.txt").open("wb") as stderr:
            with self._lock:
                if self._stopped:
                    raise InterruptedError("the trial was stopped")
                # In a session of its own a child does not get the terminal's Ctrl-C, and can be ended with its workers.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**os.environ, **threads},
                    start_new_session=True,
                )
                self._running.add(child)
            exit_code = child.wait()
        with self._lock:
            self._running.discard(child)
            if self._stopped:
                raise InterruptedError("the trial was stopped")
        return exit_code

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _end(child, signal.SIGTERM)
        for child in running:
            try:
                child.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                _end(child, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, how)
    except ProcessLookupError:
        return  # it ended by itself meanwhile


def _tail(path: Path, lines: int = 12) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-lines:])


def _read_findings(path: Path) -> tuple[Finding, ...]:
    if not path.is_file():
        return ()
    return tuple(Finding.from_dict(item) for item in json.loads(path.read_text(encoding="utf-8")))
