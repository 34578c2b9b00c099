"""Writing a run file."""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from poise.store.buffer import Buffer
from poise.store.errors import StoreError
from poise.store.journal import Journal
from poise.store.payload import encode


class RunWriter:
    """Writes the signals and events of one run into a new file, without any effect on the run.

    Calls only put numbers into memory; a thread writes them at least twice a second, so that after the process is
    killed the file holds everything up to a second before. After an error of the disk :attr:`fault` is set and
    every later call does nothing; the same holds after :meth:`close`. In a forked child process every call does
    nothing: the file belongs to the process that made it.

    Args:
        path: the file to create, in a directory that exists.
        meta: what is known about the run; see :meth:`set_meta`.

    Raises:
        StoreError: if the file exists or cannot be created.
        TypeError: if ``meta`` is not a mapping.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.db"
        >>> with RunWriter(path, meta={"script": "train.py"}) as writer:
        ...     group = writer.group(["loss", "lr"])
        ...     group.append(0, [2.3, 1e-3])
    """

    def __init__(self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None) -> None:
        if meta is not None and not isinstance(meta, Mapping):
            raise TypeError(f"meta must be a mapping, got {type(meta).__name__}")
        self.path = Path(path)
        self._journal = Journal(self.path, {str(key): encode(value) for key, value in (meta or {}).items()})
        # Runs when the writer is dropped and when the interpreter exits, whichever is first.
        self._finalizer = weakref.finalize(self, self._journal.close)

    @property
    def fault(self) -> StoreError | None:
        """The error that ended the writing, or ``None`` while there is none."""
        return self._journal.fault

    def group(self, names: Sequence[str]) -> SignalGroup:
        """Declare signals that are measured together; may be called at any time.

        Args:
            names: names of the signals, for example ``["loss", "grad_norm[blocks.0.attn.weight]"]``.

        Raises:
            ValueError: if ``names`` is empty or names a signal twice.
            TypeError: if ``names`` is one string or holds something else than strings.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names must be a sequence of strings, got {names!r}")
        if not names:
            raise ValueError("names must hold at least one name, got none")
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"names must differ, got more than once: {twice}")
        return SignalGroup(self, self._journal.add_group(tuple(names)))

    def event(self, step: int, kind: str, payload: Mapping[str, Any] | None = None) -> None:
        """Record something that happened once.

        Args:
            step: optimizer step, from 0.
            kind: what happened.
            payload: what is known about it; numpy values become plain numbers, what JSON cannot hold its text.
        """
        self._journal.add_event(operator.index(step), str(kind), encode(payload or {}))

    def set_meta(self, key: str, value: Any) -> None:
        """Set one fact about the whole run, replacing an earlier value of the same key."""
        self._journal.set_meta(str(key), encode(value))

    def flush(self) -> None:
        """Wait until everything that was given so far is in the file."""
        self._journal.flush()

    def close(self) -> None:
        """Write what waits and close the file. A second call does nothing."""
        self._journal.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SignalGroup:
    """Signals that are measured together; made by :meth:`RunWriter.group`."""

    def __init__(self, writer: RunWriter, buffer: Buffer) -> None:
        self._writer = writer  # keeps the file open as long as a group can be appended to
        self._buffer = buffer
        self._append = writer._journal.append

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the signals, in the order of the values."""
        return self._buffer.names

    def append(self, step: int, values: Sequence[float] | np.ndarray) -> None:
        """Add the values of one step.

        Args:
            step: optimizer step, from 0; steps may come in any order.
            values: one number for each name; NaN and infinities are kept.

        Raises:
            ValueError: if the number of values differs from the number of names.
            TypeError: if ``step`` is not an integer.
        """
        self._append(self._buffer, step, values)
