"""The runs of a trial: started, reused when they are finished, and read."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.doctor.masking import Masking
from poise.doctor.trial.plan import Arm, Plan
from poise.report import Finding
from poise.store import Record, RunFileError, read_run
from poise.tools.atomic_write import write_text
from poise.tools.child_process import ChildProcesses

_MARKER = "arm.json"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """The files and the outcome of one run.

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
        run = {"name": self.arm.name, "seed": self.arm.seed, "folder": Masking().text(str(self.folder))}
        return {**run, "exit_code": self.exit_code, "steps": self.steps}


Runner = Callable[[Arm, Path], int]
Progress = Callable[[int, int, ArmResult], None]


def run_arms(plan: Plan, out: Path, runner: Runner, n_jobs: int, progress: Progress | None = None) -> list[ArmResult]:
    """Run all arms of a plan, or read those that are finished already; arguments and errors as for `carry_out`."""
    arms = plan.arms
    for arm in arms:
        _require_trial_folder(_folder(out, arm))
    finished: dict[Arm, ArmResult] = {}
    from joblib import Parallel, delayed

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
    masking = plan.masking
    key = {
        "script": masking.text(plan.script),
        "sha256": plan.sha256,
        "args": masking.args,
        "args_sha256": hashlib.sha256("\0".join(plan.args).encode(errors="surrogateescape")).hexdigest(),
        "module": plan.module,
        "remedies": list(arm.remedies),
        "seed": arm.seed,
    }
    marker = _read_marker(folder)
    # A run that a signal ended (out of memory, say) may succeed the next time.
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
    write_text(folder / _MARKER, json.dumps({"key": key, "exit_code": exit_code}, indent=1))


def _require_trial_folder(folder: Path) -> None:
    foreign = folder.is_dir() and _read_marker(folder) is None and any(folder.iterdir())
    if foreign or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"out must be a folder for this trial alone, but {str(folder)!r} holds something else")


def run_script(children: ChildProcesses, plan: Plan, arm: Arm, folder: Path) -> int:
    """Run the script once under ``poise run`` and return its exit code."""
    options = [
        "--quiet",
        "--json",
        *(["--keep-args"] if plan.keep_args else []),
        "--seed",
        str(arm.seed),
        "--out",
        str(folder / "run"),
    ]
    for spec in arm.remedies:
        options += ["--remedy", spec]
    target = ["-m", plan.script] if plan.module else [plan.script]
    return children.run([sys.executable, "-m", "poise", "run", *options, *target, *plan.args], folder)


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
