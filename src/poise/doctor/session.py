"""One watched run from its first step to its report."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from poise.doctor.budget import Budget
from poise.doctor.cost import Cost
from poise.doctor.diagnose import choose_causes, diagnose
from poise.doctor.masking import Masking
from poise.doctor.probes import PROBES
from poise.doctor.recorder import Recorder
from poise.doctor.remedies.remedy import Remedy
from poise.doctor.run_report import run_report
from poise.doctor.stderr import print_line
from poise.doctor.tap.tap import Tap
from poise.report import SEVERITIES, Finding, Report, Severity
from poise.store import Record, RunWriter, read_run
from poise.tools.clock import Seconds, now

RUN_FILE, FINDINGS_FILE, REPORT_FILE = "run.db", "findings.json", "report.html"
_REPORT_SECONDS = 0.2  # of diagnosis and report on an ordinary machine; they count against the same budget


class StopRun(SystemExit):
    """Ends a script because a finding of the chosen severity was made."""


@dataclass
class Settings:
    """How a run is watched.

    Args:
        overhead: fraction of the run's own time that watching may cost; 0.03 is 3 %.
        select: causes to look for; all if empty.
        ignore: causes to leave out.
        stop_on: end the run as soon as something of this severity is found; never if ``None``.
        remedies: changes to apply to the live run.
        meta: what the run file holds about the run.
        masking: leaves out of the run file what is not to be forwarded.

    Raises:
        ValueError: if a cause or the severity is unknown.
    """

    overhead: float = 0.03
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    stop_on: Severity | None = None
    remedies: Sequence[Remedy] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        choose_causes(self.select, self.ignore)
        if self.stop_on is not None and self.stop_on not in SEVERITIES:
            raise ValueError(f"stop_on must be one of {', '.join(SEVERITIES)}, got {self.stop_on!r}")


class Session:
    """Watches this process between :meth:`start` and :meth:`finish` and writes what it found into a folder.

    Args:
        out: folder for ``run.db``, ``findings.json`` and ``report.html``; made if it is not there. A relative one is
            relative to the working directory at the time when the session is made.
        settings: how to watch.
        recording: ``False`` applies remedies only (ranks above 0 of a distributed run).
        only: optimizers to watch; all of the process if ``None``.
        roots: the models, if known.

    Raises:
        FileExistsError: if ``out`` already holds a run.
        OSError: if ``out`` cannot be written.
    """

    def __init__(
        self,
        out: Path,
        settings: Settings,
        recording: bool = True,
        only: Sequence[Optimizer] | None = None,
        roots: Sequence[nn.Module] | None = None,
    ) -> None:
        self.out = Path(out).absolute()
        self.settings = settings
        self.findings: list[Finding] = []
        self.record: Record | None = None
        self.recording = recording
        self.seconds = 0.0
        self.has_report = False
        self.cost = Cost()
        self._begun, self._plain = now(), Seconds()
        self._writer = self._open_run_file() if recording else None
        self.tap = Tap(
            Recorder(self._writer) if self._writer else None,
            [probe() for probe in PROBES],
            Budget(settings.overhead),
            settings.remedies,
            only,
            roots,
        )
        self._stack = ExitStack()
        self._next_look = 0.0
        self._child_seconds = _child_seconds()
        _sessions.add(self)

    @property
    def run_file(self) -> Path:
        """Where the signals are."""
        return self.out / RUN_FILE

    def _open_run_file(self) -> RunWriter:
        if self.run_file.exists():
            folder, file = (self.settings.masking.text(str(path)) for path in (self.out, self.run_file))
            raise FileExistsError(f"{folder} already holds a run; choose another folder, or remove {file}")
        self.out.mkdir(parents=True, exist_ok=True)
        remedies = [remedy.spec for remedy in self.settings.remedies]
        return _MaskedWriter(self.run_file, {**self.settings.meta, "remedies": remedies}, self.settings.masking)

    def count_since(self, begun: Seconds, plain: Seconds) -> None:
        """Count the time before the session was made as a part of its cost.

        Args:
            begun: when the watch began to load.
            plain: what of the time since then the script would have taken by itself: the import of torch.
        """
        self._begun, self._plain = begun, plain

    def start(self) -> Session:
        """Install the tap."""
        self._started = time.perf_counter()
        self._stack.enter_context(self.tap.installed())
        self.cost = Cost(start=now() - self._begun - self._plain)
        self.tap.budget.fixed = self.cost.start.busy + _REPORT_SECONDS
        if self.settings.stop_on is not None and self._writer is not None:
            self.tap.between_steps = self._diagnose_live
        return self

    def _diagnose_live(self) -> None:
        """Diagnose the run while it goes on, no more often than a twentieth of the time allows."""
        start = time.perf_counter()
        if start < self._next_look or self._writer is None:
            return
        self.tap.recorder.drain()  # type: ignore[union-attr]
        self._writer.flush()
        findings = diagnose(read_run(self.run_file), self.settings.select, self.settings.ignore)
        self._next_look = time.perf_counter() + max(2.0, 20 * (time.perf_counter() - start))
        wanted = SEVERITIES.index(self.settings.stop_on)
        severe = next((f for f in findings if SEVERITIES.index(f.severity) >= wanted), None)
        if severe is not None:
            print_line(f"poise: stopped the run: {severe.summary}")
            raise StopRun(3)

    def finish(self, how: str = "finished", detail: str = "") -> list[Finding]:
        """Remove the tap, diagnose, and write findings and report.

        Args:
            how: ``"finished"``, ``"exception"``, ``"interrupted"``, ``"exit"`` or ``"terminated"``.
            detail: the exception, or the exit code.

        Raises:
            KeyboardInterrupt: if Ctrl-C interrupts it; what was recorded is kept.
        """
        self.seconds, ended = time.perf_counter() - self._started, now()
        self._stack.close()
        if self._writer is None:
            return []
        writer, self._writer = self._writer, None
        try:
            self.cost = self._cost_at(ended)
            self._note_end(writer, how, detail)
            self.tap.recorder.close()  # type: ignore[union-attr]
            if writer.fault is not None:
                print_line(f"poise: the record is incomplete ({self.settings.masking.text(str(writer.fault))})")
            self._conclude()
            self.cost = replace(self.cost, report=now() - ended, total=now() - self._begun)
        except KeyboardInterrupt:
            self._say_no_report("interrupted")
            raise
        except Exception as error:  # the end of the script does not change; what was recorded is kept
            self._say_no_report(f"{type(error).__name__}: {error}")
        return self.findings

    def _say_no_report(self, reason: str) -> None:
        print_line(f"poise: no report ({reason}); the run is in {self.shown(self.run_file)}")

    def shown(self, path: Path) -> str:
        """Return a path as it is shown to the user: relative to the folder in which the session was made."""
        return self.settings.masking.text(str(path))

    @property
    def child_seconds(self) -> float:
        """CPU time of the child processes that have ended since the session was made."""
        return _child_seconds() - self._child_seconds

    def forget(self) -> None:
        """Stop watching: this process is a forked child, and the run belongs to its parent."""
        self.recording = False
        self._writer = None

    def _cost_at(self, ended: Seconds) -> Cost:
        setup, spent = self.tap.budget.setup, self.tap.budget.spent
        start = self.cost.start + Seconds(setup, setup)
        return Cost(start, Seconds(spent, spent), total=ended - self._begun)

    def _conclude(self) -> None:
        self.record = read_run(self.run_file)
        self.findings = diagnose(self.record, self.settings.select, self.settings.ignore)
        write_findings(self.out / FINDINGS_FILE, self.findings)
        self.report().save(self.out / REPORT_FILE)
        self.has_report = True

    def report(self) -> Report:
        """Return the report of the finished run.

        Raises:
            RuntimeError: before :meth:`finish`.
        """
        if self.record is None:
            raise RuntimeError("the run has no report before finish() was called")
        return run_report(self.record, self.findings)

    def _note_end(self, writer: RunWriter, how: str, detail: str) -> None:
        tap = self.tap
        tap.state.sink.event(tap.state.step, "script_end", {"how": how, "detail": detail})
        writer.set_meta("seconds", self.seconds)
        writer.set_meta("cost", self.cost.to_dict())
        writer.set_meta("overhead_allowed", tap.budget.overhead)
        writer.set_meta("counts", tap.counts)
        writer.set_meta("notes", [note for remedy in self.settings.remedies for note in remedy.notes])
        if tap.fault:
            writer.set_meta("fault", tap.fault)


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write findings as JSON."""
    path.write_text(json.dumps([f.to_dict() for f in findings], indent=1) + "\n", encoding="utf-8")


class _MaskedWriter(RunWriter):
    """A run file that holds no secrets and no absolute paths."""

    def __init__(self, path: Path, meta: Mapping[str, Any], masking: Masking) -> None:
        self._masking = masking
        super().__init__(path, masking.tree(dict(meta)))

    def event(self, step: int, kind: str, payload: Mapping[str, Any] | None = None) -> None:
        super().event(step, kind, self._masking.tree(dict(payload or {})))

    def set_meta(self, key: str, value: Any) -> None:
        super().set_meta(key, self._masking.tree(value))


def _child_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forget_in_child() -> None:
    for session in _sessions:
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
