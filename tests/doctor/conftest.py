import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from poise.doctor.budget import Budget
from poise.doctor.probes import PROBES
from poise.doctor.recorder import Recorder
from poise.doctor.tap.tap import Tap
from poise.store import Record, RunWriter, read_run


@dataclass
class Watched:
    """A watched stretch of training; `record` is there after the end."""

    tap: Tap
    path: Path
    record: Record | None = None

    def __getitem__(self, signal: str):
        return self.record[signal]


@pytest.fixture
def watching(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Watched]]:
    """Watch a block of code, on every step if the budget says so."""
    count = iter(range(100))

    @contextlib.contextmanager
    def watch(overhead: float = 1.0, probes=PROBES, **options) -> Iterator[Watched]:
        path = tmp_path / f"run{next(count)}.db"
        tap = Tap(Recorder(RunWriter(path)), [p() for p in probes], Budget(overhead, credit=100.0), **options)
        watched = Watched(tap, path)
        with tap.installed():
            yield watched
        tap.recorder.close()
        watched.record = read_run(path)

    return watch


@pytest.fixture(scope="session")
def fork_server() -> Iterator[subprocess.Popen[str]]:
    """A process from which commands are forked: importing torch for each of them would take most of the time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def poise(fork_server, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line in a process of its own: ``poise("run", "train.py", cwd=folder)``.

    With ``plain`` it is a script that is called, as by Python: ``poise("train.py", plain=True)``.
    """

    def call(
        *arguments: object, cwd: Path = tmp_path, timeout: float = 300, stdin: str | None = None, plain: bool = False
    ) -> subprocess.CompletedProcess[str]:
        outputs = {name: tmp_path / f".{name}" for name in ("stdout", "stderr")}
        files = {"stdin": os.devnull, **{name: str(path) for name, path in outputs.items()}}
        if stdin is not None:
            files["stdin"] = str(tmp_path / ".stdin")
            (tmp_path / ".stdin").write_text(stdin)
        command = {
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "env": {"COLUMNS": "200"},
            "plain": plain,
            **files,
        }
        fork_server.stdin.write(json.dumps(command) + "\n")
        fork_server.stdin.flush()
        child = int(fork_server.stdout.readline())
        stop = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
        stop.start()
        code = int(fork_server.stdout.readline())
        stop.cancel()
        return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs.values()))

    return call
