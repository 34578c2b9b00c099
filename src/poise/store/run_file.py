"""Reading a run file, finished or still being written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from poise.store.blocks import Block
from poise.store.columns import Columns
from poise.store.errors import RunFileError
from poise.store.event import Event
from poise.store.payload import decode
from poise.store.record import Record
from poise.store.schema import STEPS_DTYPE, VALUES_DTYPE, connect_for_reading, unreadable


def read_run(path: str | os.PathLike[str]) -> Record:
    """Open a run file, also one that is still being written or whose writer was killed.

    Opening reads names and events only; numbers are read on first use.

    Args:
        path: the file that a :class:`RunWriter` made.

    Raises:
        RunFileError: if the file is not there, empty, not a run file, corrupt, or of a newer format.
    """
    return Record(RunFile(Path(path)))


class RunFile:
    """A run file as the source of a record. It keeps no connection open between reads.

    Raises:
        RunFileError: if the file is not there, was not made by poise, or is corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, Any] = {}
        self.events: list[Event] = []
        self.groups: list[Columns] = []
        self._last_event = 0
        self.refresh()

    def refresh(self) -> None:
        """Read everything that was written since the last call.

        Raises:
            RunFileError: if the file cannot be read.
        """
        with self._reading() as connection:
            self.meta = {key: decode(value) for key, value in connection.execute("SELECT key, value FROM meta")}
            self._read_events(connection)
            self._read_groups(connection)

    def _read_events(self, connection: sqlite3.Connection) -> None:
        query = "SELECT id, step, kind, payload FROM events WHERE id > ? ORDER BY id"
        for number, step, kind, payload in connection.execute(query, (self._last_event,)).fetchall():
            self.events.append(Event(step, kind, decode(payload)))
            self._last_event = number
        self.events.sort(key=lambda event: event.step)

    def _read_groups(self, connection: sqlite3.Connection) -> None:
        query = "SELECT id, names FROM groups WHERE id >= ? ORDER BY id"
        for number, names in connection.execute(query, (len(self.groups),)).fetchall():
            self.groups.append(Columns(tuple(decode(names)), partial(self._fetch, number, len(decode(names)))))
        query = "SELECT group_id, SUM(rows), MIN(first_step), MAX(last_step) FROM blocks GROUP BY group_id"
        for number, rows, first, last in connection.execute(query).fetchall():
            self.groups[number].grow(rows, first, last)

    def _fetch(self, group_id: int, width: int, row: int) -> list[Block]:
        query = "SELECT start, rows, steps, data FROM blocks WHERE group_id = ? AND start + rows > ? ORDER BY start"
        with self._reading() as connection:
            return [_block(width, *found) for found in connection.execute(query, (group_id, row))]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(connect_for_reading(self.path)) as connection:
            try:
                connection.execute("BEGIN")  # one state of the file for all queries
                yield connection
            except sqlite3.Error as error:
                raise unreadable(self.path, error) from error
            except (ValueError, IndexError) as error:
                raise RunFileError(f"run file {self.path} is corrupt: {error}") from error


def _block(width: int, start: int, rows: int, steps: bytes, data: bytes) -> Block:
    if len(steps) != 8 * rows or len(data) != 8 * rows * width:
        raise ValueError(f"a block of {rows} rows of {width} signals holds {len(steps)} and {len(data)} bytes")
    values = np.frombuffer(data, VALUES_DTYPE).reshape(width, rows)
    return Block(start, np.frombuffer(steps, STEPS_DTYPE), values)
