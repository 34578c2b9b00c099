"""Child processes that end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_END = 5.0
"""How long a child may take to end by itself after it was asked to."""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ChildProcesses:
    """Child processes of one job; leaving the context with an error or an interrupt ends them all, and theirs.

    Several threads may start children. Each computes with one thread, and writes to files of its own. A copy in another
    process (for example of joblib) has children of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __reduce__(self) -> tuple[type[ChildProcesses], tuple[()]]:
        return type(self), ()

    def __enter__(self) -> ChildProcesses:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.stop()

    def run(self, command: Sequence[str], folder: Path) -> int:
        """Run a command to its end and return its exit code; see :meth:`child`."""
        with self.child(command, folder) as child:
            return child.wait()

    @contextmanager
    def child(self, command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command and yield its process, which is ended if the context ends with an error.

        Args:
            command: program and arguments.
            folder: an existing one for its output, ``stdout.txt`` and ``stderr.txt``.

        Raises:
            InterruptedError: if the job was stopped, before it began or while it ran.
        """
        child = self._start(command, folder)
        try:
            yield child
        except BaseException:
            end_process(child)
            raise
        finally:
            with self._lock:
                self._running.discard(child)
        self._require_not_stopped()

    def stop(self) -> None:
        """End all children, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for child in running:
            _send(child, signal.SIGTERM)  # to all, before any is waited for
        for child in running:
            _wait_or_kill(child, SECONDS_TO_END)

    def _start(self, command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
        with (folder / "stdout.txt").open("wb") as stdout, (folder / "stderr.txt").open("wb") as stderr, self._lock:
            self._require_not_stopped()
            # In a session of its own a child does not get the terminal's Ctrl-C, and can be ended with its workers.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,
            )
            self._running.add(child)
        return child

    def _require_not_stopped(self) -> None:
        if self._stopped:
            raise InterruptedError("the job was stopped")


def end_process(child: subprocess.Popen[bytes], seconds: float = SECONDS_TO_END) -> None:
    """End a process that leads a session, and all in it: by a signal that it may handle, then by force.

    Args:
        child: the process; nothing happens if it has ended.
        seconds: how long it may take before force is used.
    """
    _send(child, signal.SIGTERM)
    _wait_or_kill(child, seconds)


def _wait_or_kill(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        _send(child, signal.SIGKILL)
        child.wait()


def _send(child: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, how)
    except ProcessLookupError:
        return  # it ended by itself meanwhile
