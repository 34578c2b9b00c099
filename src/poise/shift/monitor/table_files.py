"""Tables in files, read in batches: CSV, Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from poise.tools.listing import listing

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536
_BLOCK_BYTES = 1 << 22
_KINDS = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


def read_table(path: Path) -> pa.Table:
    """Return a whole file as a table.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name has no known ending, or its content is not of that kind.
    """
    import pyarrow as pa

    with _named(path):
        batches = list(_batches(path, None, None))
    if not batches:
        raise ValueError(f"{path} has no rows")
    return pa.Table.from_batches(batches)


def table_batches(path: Path, schema: pa.Schema, optional: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yield a file in batches of bounded size, with the columns and types of a schema.

    Args:
        path: the file.
        schema: columns and types that are wanted; others are not read.
        optional: columns that may be missing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or has values of another type.
    """
    import pyarrow as pa

    with _named(path):
        has = set(column_names(path))
        missing = [name for name in schema.names if name not in has and name not in optional]
        if missing:
            raise ValueError(f"{path} must have the columns {', '.join(missing)}; it has {listing(sorted(has), 8)}")
        wanted = pa.schema([field for field in schema if field.name in has])
        for batch in _batches(path, wanted.names, wanted):
            yield pa.Table.from_batches([batch]).select(wanted.names).cast(wanted)


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    import pyarrow.csv
    import pyarrow.ipc
    import pyarrow.parquet

    kind = kind_of(path)
    if kind == "parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    if kind == "arrow":
        with pyarrow.ipc.open_file(path) as reader:
            return list(reader.schema.names)
    options = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    with pyarrow.csv.open_csv(path, read_options=options) as reader:
        return list(reader.schema.names)


def _batches(path: Path, columns: list[str] | None, types: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    import pyarrow.csv
    import pyarrow.ipc
    import pyarrow.parquet

    kind = kind_of(path)
    if kind == "parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
    elif kind == "arrow":
        with pyarrow.ipc.open_file(path) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield batch if columns is None else batch.select(columns)
    else:
        convert = pyarrow.csv.ConvertOptions(include_columns=columns, column_types=types)
        options = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
        with pyarrow.csv.open_csv(path, read_options=options, convert_options=convert) as reader:
            yield from reader


def kind_of(path: Path) -> str:
    """Return ``"csv"``, ``"parquet"`` or ``"arrow"``, or raise ValueError or FileNotFoundError."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} must end in one of {', '.join(_KINDS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return kind


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before an error of the Arrow library."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
