"""A monitor of a deployed classifier, in a folder."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np

from poise.shift.estimation.chunks import ByNumber, BySize, ByTime
from poise.shift.estimation.estimates import ChunkEstimate, table_rows
from poise.shift.estimation.estimator import FEWEST_ROWS, PerformanceEstimator
from poise.shift.monitor.ledger import FileSeen, Ledger
from poise.shift.monitor.table_files import kind_of, read_table, table_batches
from poise.tools.atomic_write import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

MODEL, RESULTS, LEDGER, WAITING = "monitor.joblib", "estimates.csv", "ledger.json", "waiting.arrow"


@dataclass(frozen=True, slots=True)
class _Saved:
    estimator: PerformanceEstimator
    schema: bytes
    version: str


class Monitor:
    """Estimates the performance of a deployed classifier over files that arrive one after the other.

    The files are read as one stream of rows: a chunk may begin in one file and end in another, and one file or ten give
    the same estimates. Memory is needed for one chunk. After each chunk the state is written; a run that was
    interrupted continues where it stopped when it is given the same files again, and files that were read are not read
    twice (a file that has grown is read from where it ended).

    The folder holds ``monitor.joblib`` (a pickle: open only what you trust), ``estimates.csv`` with a row for each
    chunk and metric, ``ledger.json`` and the rows that wait for their chunk to be full.

    Args:
        folder: made by :meth:`fit`.

    Raises:
        FileNotFoundError: if there is no monitor in the folder.
        ValueError: if it was made by another version of poise.
    """

    def __init__(self, folder: str | Path) -> None:
        import pyarrow as pa

        from poise import __version__

        self.folder = Path(folder)
        if not (self.folder / MODEL).is_file():
            raise FileNotFoundError(f"there is no monitor in {self.folder}: make one by `poise monitor fit`")
        saved = joblib.load(self.folder / MODEL)
        if saved.version != __version__:
            raise ValueError(f"the monitor in {self.folder} was made by poise {saved.version}, this is {__version__}")
        self.estimator: PerformanceEstimator = saved.estimator
        self._schema = pa.ipc.read_schema(pa.py_buffer(saved.schema))

    @classmethod
    def fit(cls, folder: str | Path, reference: str | Path, estimator: PerformanceEstimator, **roles: Any) -> Monitor:
        """Fit an estimator to a labelled reference and keep it in a folder.

        Args:
            folder: made if it is missing; must not hold a monitor.
            reference: CSV, Parquet or Arrow file.
            estimator: not fitted; its ``chunk`` must be rows per chunk or a period.
            roles: as of :meth:`PerformanceEstimator.fit`.

        Raises:
            FileExistsError: if there is a monitor in the folder.
            FileNotFoundError: if there is no reference.
            ValueError: if the estimator's chunks are numbered, a column is missing, or the reference is not as
                :meth:`PerformanceEstimator.fit` wants it.
        """
        from poise import __version__

        folder = Path(folder)
        if (folder / MODEL).exists():
            raise FileExistsError(f"there is a monitor in {folder}; choose another folder or remove it")
        if isinstance(estimator.chunking, ByNumber):
            raise ValueError(
                "chunk must be rows per chunk or a period such as '1D' for a monitor, got a number of chunks"
            )
        if isinstance(estimator.chunking, BySize) and estimator.chunking.rows < FEWEST_ROWS:
            raise ValueError(f"chunk must have at least {FEWEST_ROWS} rows, got {estimator.chunking.rows}")
        table = read_table(Path(reference))
        estimator.fit(table, **roles)
        schema = table.schema.remove_metadata()
        kept = [name for name in schema.names if name in _columns(estimator)]
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / MODEL) as temporary:
            encoded = table.select(kept).schema.remove_metadata().serialize().to_pybytes()
            try:
                joblib.dump(_Saved(estimator, encoded, __version__), temporary, compress=3)
            except (pickle.PicklingError, AttributeError) as error:
                raise ValueError(f"metrics of a monitor must be functions of a module, no lambdas: {error}") from error
        return cls(folder)

    def run(
        self,
        files: Sequence[str | Path],
        *,
        finish: bool = False,
        progress: Callable[[ChunkEstimate], None] | None = None,
    ) -> list[ChunkEstimate]:
        """Read files and return the estimates of all chunks that became full.

        Args:
            files: CSV, Parquet or Arrow files, in the order of their rows.
            finish: whether what remains at the end becomes a chunk, though it may not be full.
            progress: called after each chunk.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a column is missing or of another type, a file that was read before is another one now, rows
                are not in the order of their periods, or what remains at the end has fewer than 50 rows.
        """
        paths = [Path(file) for file in files]
        for path in paths:
            kind_of(path)  # before anything is read
        ledger = Ledger.read(self.folder / LEDGER)
        self._drop_unfinished(ledger)
        found: list[ChunkEstimate] = []
        buffer = _Buffer(self._waiting_rows(ledger))
        for path in paths:
            seen = ledger.seen(path)
            for table in _after(table_batches(path, self._schema, self._optional), seen.rows):
                buffer.add(table, seen)
                for size in self._full_chunks(buffer, path):
                    found.append(self._finish_chunk(buffer.take(size), ledger))
                    if progress is not None:
                        progress(found[-1])
        if finish and buffer.rows:
            if buffer.rows < FEWEST_ROWS:
                raise ValueError(f"the last chunk must have at least {FEWEST_ROWS} rows, got {buffer.rows}")
            found.append(self._finish_chunk(buffer.take(buffer.rows), ledger))
        self._keep_waiting(buffer, ledger)
        return found

    @property
    def _optional(self) -> list[str]:
        return [self.estimator.reader_.roles.y_true]

    def _full_chunks(self, buffer: _Buffer, path: Path) -> Iterator[int]:
        """Yield the sizes of the full chunks at the beginning of the buffer, which the caller takes one by one."""
        chunking = self.estimator.chunking
        if isinstance(chunking, BySize):
            while buffer.rows >= chunking.rows:
                yield chunking.rows
            return
        assert isinstance(chunking, ByTime)
        times = self.estimator.reader_.times(buffer.table(), str(path))
        assert times is not None
        if np.isnat(times).any():
            raise ValueError(
                f"timestamp must not be missing, got {int(np.isnat(times).sum())} rows without one in {path}"
            )
        steps = np.diff(chunking.keys(times))
        if (steps < 0).any():
            raise ValueError(f"rows must be in the order of their {chunking.period} periods, {path} has an earlier one")
        ends = np.flatnonzero(steps) + 1
        yield from np.diff(ends, prepend=0).tolist()

    def _finish_chunk(self, taken: _Taken, ledger: Ledger) -> ChunkEstimate:
        times = self.estimator.reader_.times(taken.table, "production")
        whole = slice(0, taken.table.num_rows)
        found = self.estimator.chunk_estimate(taken.table, ledger.chunks, whole, times, offset=ledger.rows)
        with (self.folder / RESULTS).open("ab") as file:
            file.write(_csv(found, header=ledger.result_bytes == 0))
            ledger.result_bytes = file.tell()
        ledger.chunks += 1
        ledger.rows += taken.table.num_rows
        ledger.waiting = 0
        for seen, rows in taken.sources:
            seen.rows += rows
        ledger.write(self.folder / LEDGER)
        return found

    def _drop_unfinished(self, ledger: Ledger) -> None:
        """Remove rows of a chunk that was written while the run was ended."""
        results = self.folder / RESULTS
        if results.exists() and results.stat().st_size > ledger.result_bytes:
            with results.open("r+b") as file:
                file.truncate(ledger.result_bytes)

    def _waiting_rows(self, ledger: Ledger) -> pa.Table | None:
        import pyarrow as pa

        if not ledger.waiting:
            return None
        with pa.OSFile(str(self.folder / WAITING)) as file, pa.ipc.open_file(file) as reader:
            return reader.read_all()

    def _keep_waiting(self, buffer: _Buffer, ledger: Ledger) -> None:
        import pyarrow as pa

        if buffer.rows:
            table = buffer.table()
            with (
                atomic_write(self.folder / WAITING) as temporary,
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
        ledger.waiting = buffer.rows
        for seen, rows in buffer.take(buffer.rows).sources:
            seen.rows += rows
        ledger.write(self.folder / LEDGER)


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    table: pa.Table
    sources: list[tuple[FileSeen, int]]


class _Buffer:
    """Rows that wait for their chunk to be full, and the files from which they come."""

    def __init__(self, waiting: pa.Table | None) -> None:
        self._parts: list[tuple[pa.Table, FileSeen | None]] = [] if waiting is None else [(waiting, None)]
        self.rows = 0 if waiting is None else waiting.num_rows

    def add(self, table: pa.Table, seen: FileSeen) -> None:
        """Append rows of a file."""
        self._parts.append((table, seen))
        self.rows += table.num_rows

    def table(self) -> pa.Table:
        """Return all rows as one table."""
        return _joined([part for part, _ in self._parts])

    def take(self, rows: int) -> _Taken:
        """Remove rows from the beginning and return them."""
        tables, sources, missing = [], [], rows
        while missing and self._parts:
            part, seen = self._parts.pop(0)
            used = min(missing, part.num_rows)
            tables.append(part.slice(0, used))
            if seen is not None:
                sources.append((seen, used))
            if used < part.num_rows:
                self._parts.insert(0, (part.slice(used), seen))
            missing -= used
        self.rows -= rows - missing
        return _Taken(_joined(tables), sources)


def _joined(tables: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    # Labels may be missing in one file and present in the next.
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})


def _after(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield tables without the first rows of all of them together."""
    for table in tables:
        if table.num_rows > rows:
            yield table.slice(rows)
        rows = max(0, rows - table.num_rows)


def _columns(estimator: PerformanceEstimator) -> set[str]:
    roles = estimator.reader_.roles
    others = [name for name in (roles.y_true, roles.y_pred, roles.timestamp) if name is not None]
    features = estimator.reader_.features if estimator.needs_features else ()
    return {*roles.score_columns, *others, *features}


def _csv(found: ChunkEstimate, *, header: bool) -> bytes:
    columns: Mapping[str, list[Any]] = table_rows([found])
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if header:
        writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()
