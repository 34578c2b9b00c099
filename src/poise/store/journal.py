"""The writing side of a run file: what waits in memory, and the thread that writes it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from poise.store.blocks import BlockLog
from poise.store.buffer import Buffer
from poise.store.errors import StoreError
from poise.store.payload import encode
from poise.store.schema import create_tables

# Seconds between flushes. The documented limit is one second; the rest is a margin for a busy machine.
FLUSH_SECONDS = 0.3
# Rows that wait are written early at the first size, and dropped (a fault) at the second: the disk is too slow.
EARLY_BYTES = 16 << 20
MOST_BYTES = 512 << 20
# The longest that flush(), close() or a fork waits for a disk that hangs.
PATIENCE_SECONDS = 30.0


class Journal:
    """Collects rows, events and meta values; one thread of its own does all the writing.

    The callers only touch memory under a lock that is held for microseconds. Only the thread uses the database, so no
    signal handler and no garbage collection can enter it twice.
    """

    def __init__(self, path: Path, meta: dict[str, str]) -> None:
        self.fault: StoreError | None = None
        self.done = False  # closed, faulted or in a forked child: every call is a no-op
        self._path = path
        self._connection = _create(path, meta)
        self._wake = threading.Event()
        self._stop = False
        self._waiting: list[threading.Event] = []
        self._rows_lock = threading.RLock()
        self._database_lock = threading.RLock()
        self._buffers: list[Buffer] = []
        self._logs: list[BlockLog] = []
        self._events: list[tuple[int, str, str]] = []
        self._meta: dict[str, str] = {}
        self._full_bytes = 0
        self._thread = threading.Thread(target=self._run, name="poise-store", daemon=True)
        _live.add(self)
        self._thread.start()

    def add_group(self, names: tuple[str, ...]) -> Buffer:
        """Make room for a new group of signals."""
        with self._rows_lock:
            buffer = Buffer(len(self._buffers), names)
            self._buffers.append(buffer)
        return buffer

    def append(self, buffer: Buffer, step: int, values: Sequence[float] | np.ndarray) -> None:
        """Add one row of a group."""
        if self.done:
            return
        with self._rows_lock:
            filled = buffer.append(step, values)
            if filled:
                self._full_bytes += filled
                self._watch_size()

    def add_event(self, step: int, kind: str, payload: str) -> None:
        """Add one event."""
        if not self.done:
            with self._rows_lock:
                self._events.append((step, kind, payload))

    def set_meta(self, key: str, value: str) -> None:
        """Set one meta value."""
        if not self.done:
            with self._rows_lock:
                self._meta[key] = value

    def flush(self) -> None:
        """Wait until all that came before this call is in the file."""
        if self.done or threading.current_thread() is self._thread:
            return
        written = threading.Event()
        with self._rows_lock:
            self._waiting.append(written)
        self._wake.set()
        self._await(written)

    def close(self) -> None:
        """Write what waits, close the file and end the thread. May be called again."""
        if self.done:
            return
        self._stop = True
        self._wake.set()
        # The garbage collector may call this from any thread, the journal's own included: that one cannot wait.
        if threading.current_thread() is not self._thread:
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive():
                self.give_up(f"closing took more than {PATIENCE_SECONDS:.0f} s, the disk is too slow")

    def give_up(self, reason: str) -> None:
        """Stop writing and keep the reason."""
        self.fault = StoreError(f"cannot write run file {self._path}: {reason}")
        self.done = True
        self._wake.set()

    def _await(self, written: threading.Event) -> None:
        for _ in range(int(PATIENCE_SECONDS / 0.1)):
            if written.wait(0.1) or not self._thread.is_alive():
                return

    def _watch_size(self) -> None:
        if self._full_bytes > MOST_BYTES:
            self.give_up(f"{self._full_bytes >> 20} MiB wait to be written, the disk is too slow")
        elif self._full_bytes > EARLY_BYTES:
            self._wake.set()

    # What follows runs in the journal's own thread.

    def _run(self) -> None:
        try:
            while not (self._stop or self.done):
                self._wake.wait(FLUSH_SECONDS)
                self._wake.clear()
                if not self.done:
                    with self._database_lock:
                        self._write_waiting()
        except Exception as error:  # of any kind: the training continues, and the writer reports it
            self.give_up(str(error))
        with self._database_lock:
            self._finish()

    def _write_waiting(self) -> None:
        with self._rows_lock:
            chunks = [buffer.take() for buffer in self._buffers]
            events, self._events = self._events, []
            meta, self._meta = self._meta, {}
            waiting, self._waiting = self._waiting, []
            self._full_bytes = 0
        new = self._buffers[len(self._logs) : len(chunks)]
        if new or events or meta or any(chunks):
            with _transaction(self._connection):
                self._write_groups(new)
                for log, rows in zip(self._logs, chunks, strict=True):
                    if rows:
                        log.write(self._connection, rows)
                self._connection.executemany("INSERT INTO events (step, kind, payload) VALUES (?, ?, ?)", events)
                self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
        for written in waiting:
            written.set()

    def _write_groups(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            self._connection.execute("INSERT INTO groups VALUES (?, ?)", (buffer.group_id, encode(buffer.names)))
            self._logs.append(BlockLog(buffer.group_id))

    def _finish(self) -> None:
        try:
            if not self.done:
                self._write_waiting()
                with _transaction(self._connection):
                    for log in self._logs:
                        log.compact(self._connection)
                _fold_log(self._connection)
        except Exception as error:
            self.give_up(str(error))
        self.done = True
        with contextlib.suppress(sqlite3.Error):  # a full disk may refuse even this; what was written stays readable
            self._connection.close()
        with self._rows_lock:
            self._buffers, self._logs, self._events = [], [], []
            for written in self._waiting:
                written.set()

    # What follows runs around a fork.

    def before_fork(self) -> None:
        """Hold the thread outside SQLite and keep the rows unchanged, so that the child starts in a clean state."""
        self._database_lock.acquire(timeout=PATIENCE_SECONDS)
        self._rows_lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Continue."""
        self._rows_lock.release()
        with contextlib.suppress(RuntimeError):  # the lock was not acquired in time
            self._database_lock.release()

    def after_fork_in_child(self) -> None:
        """Write nothing more: the file belongs to the parent."""
        self.done = True
        self._rows_lock, self._database_lock = threading.RLock(), threading.RLock()
        self._buffers, self._logs, self._events, self._waiting = [], [], [], []
        # Closing the inherited connection would change the parent's file, so it must stay open until the process ends:
        # take one reference that is never released.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))


def _create(path: Path, meta: dict[str, str]) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError as error:
        raise StoreError(f"cannot create run file {path}: it exists already") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot create run file {path}: {reason}") from error
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        create_tables(connection)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    except sqlite3.Error as error:
        connection.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise StoreError(f"cannot create run file {path}: {error}") from error
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _fold_log(connection: sqlite3.Connection) -> None:
    # A finished run is one plain file that opens anywhere, also in read-only places. A reader that has the file open
    # prevents it; then the file stays in write-ahead mode, and can be read as well.
    connection.execute("PRAGMA busy_timeout = 0")
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = DELETE")


_live: weakref.WeakSet[Journal] = weakref.WeakSet()
_held: list[Journal] = []  # the journals that a fork in progress has stopped
_fork_lock = threading.Lock()  # two threads may fork at once


def _before_fork() -> None:
    _fork_lock.acquire()
    _held[:] = [journal for journal in _live if not journal.done]
    for journal in _held:
        journal.before_fork()


def _after_fork_in_parent() -> None:
    for journal in _held:
        journal.after_fork_in_parent()
    _held.clear()
    _fork_lock.release()


def _after_fork_in_child() -> None:
    for journal in _held:
        journal.after_fork_in_child()
    _held.clear()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
