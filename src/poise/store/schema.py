"""The layout of a run file: SQLite tables, format version, opening for reading."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from poise.store.errors import RunFileError

# "POIS" in ASCII: tools such as file(1) and this package recognise a run file by it.
APPLICATION_ID = 0x504F4953
FORMAT_VERSION = 1

# A group is an append-only log of rows; a block holds the rows start .. start + rows - 1 of one group.
# ``steps`` is rows x int64, ``data`` is names x rows x float64 (one signal after the other), both little-endian.
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE groups (id INTEGER PRIMARY KEY, names TEXT NOT NULL);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, start INTEGER NOT NULL, rows INTEGER NOT NULL,
    first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, steps BLOB NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX block_spans ON blocks (group_id, start, rows, first_step, last_step);
CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL);
"""
STEPS_DTYPE = "<i8"
VALUES_DTYPE = "<f8"


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of a run file in an empty database in write-ahead mode."""
    # Bigger pages than SQLite's 4 KiB: a block is a long blob. Must be set before the first table.
    connection.execute("PRAGMA page_size = 8192")
    connection.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION}; {TABLES} COMMIT;"
    )
    connection.execute("PRAGMA journal_mode = WAL")
    # In write-ahead mode NORMAL survives the death of the process without an fsync at every commit.
    connection.execute("PRAGMA synchronous = NORMAL")


def connect_for_reading(path: Path) -> sqlite3.Connection:
    """Open a run file read-only and check that it is one this version can read.

    Raises:
        RunFileError: if it is not there, empty, not a run file, or of a newer format.
    """
    # Never open the file other than through SQLite: closing such a handle would drop the locks that a writer in this
    # very process holds on it (POSIX locks belong to the process).
    if not path.exists():
        raise RunFileError(f"run file {path} does not exist")
    if not path.is_file():
        raise RunFileError(f"run file {path} is not a file")
    if path.stat().st_size == 0:
        raise RunFileError(f"run file {path} is empty")
    return _checked(path, _open(path))


def _open(path: Path) -> sqlite3.Connection:
    address = path.absolute().as_uri() + "?mode=ro"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=5.0)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        # Write-ahead mode must create a file beside the run file; in a read-only directory it cannot. With no log left
        # behind the file alone is complete, and SQLite may treat it as immutable.
        connection.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size > 0:
            raise RunFileError(f"run file {path} cannot be opened: {error}") from error
        return sqlite3.connect(address + "&immutable=1", uri=True, isolation_level=None)
    except sqlite3.DatabaseError:
        pass  # not a database, or a damaged one: the check that follows finds which
    return connection


def _checked(path: Path, connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise unreadable(path, error) from error
    if application != APPLICATION_ID:
        connection.close()
        raise RunFileError(f"{path} is not a poise run file: it is some other SQLite database")
    if version > FORMAT_VERSION:
        connection.close()
        raise RunFileError(
            f"run file {path} has format {version}, written by a newer poise; this one reads up to {FORMAT_VERSION}"
        )
    return connection


def unreadable(path: Path, error: sqlite3.Error) -> RunFileError:
    """Return the error that explains why SQLite could not read a run file."""
    if "not a database" in str(error):
        return RunFileError(f"{path} is not a poise run file: it is no SQLite database")
    if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
        return RunFileError(f"run file {path} cannot be read: {error}")
    return RunFileError(f"run file {path} is corrupt: {error}")
