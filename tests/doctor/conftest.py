import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from poise.doctor.budget import Budget
from poise.doctor.probes import PROBES
from poise.doctor.recorder import Recorder
from poise.doctor.tap.install import install
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
        tap = Tap(Recorder(RunWriter(path)), [p() for p in probes], Budget(overhead, loan=100.0), **options)
        watched = Watched(tap, path)
        with install(tap):
            yield watched
        tap.recorder.close()
        watched.record = read_run(path)

    return watch
