"""How rows are divided into chunks: by size, by number or by time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64

_PERIOD = re.compile(r"(?P<count>\d*)\s*(?P<unit>min|[sSTHhDdWwMQYy]|ME|QE|YE)")
_UNITS = {"s": "s", "S": "s", "min": "m", "T": "m", "h": "h", "H": "h", "D": "D", "d": "D", "W": "W", "w": "W"}
_MONTHS = {"M": 1, "ME": 1, "Q": 3, "QE": 3, "Y": 12, "y": 12, "YE": 12}
# numpy counts weeks from a Thursday; four days later is a Monday.
_MONDAY = np.timedelta64(4, "D")


@dataclass(frozen=True, slots=True)
class BySize:
    """Chunks of ``rows`` rows each; the last one holds what remains."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"chunk must be at least 1 row, got {self.rows}")


@dataclass(frozen=True, slots=True)
class ByNumber:
    """``number`` chunks whose sizes differ by at most one row."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"chunk must be at least 1 chunk, got {self.number}")


@dataclass(frozen=True, slots=True)
class ByTime:
    """One chunk for each calendar period: ``"1D"``, ``"1W"`` (from Monday), ``"1M"``, ``"1Q"``, ``"1Y"``, ``"6h"``."""

    period: str

    def __post_init__(self) -> None:
        _parsed(self.period)

    def keys(self, time: np.ndarray) -> Int64[np.ndarray, " rows"]:
        """Return the number of the period of each time, counted from 1970."""
        count, unit = _parsed(self.period)
        if unit in _MONTHS:
            return time.astype("datetime64[M]").astype(np.int64) // (count * _MONTHS[unit])
        if _UNITS[unit] == "W":
            return (time.astype("datetime64[D]") - _MONDAY).astype("datetime64[D]").astype(np.int64) // (7 * count)
        return time.astype(f"datetime64[{_UNITS[unit]}]").astype(np.int64) // count


Chunking = BySize | ByNumber | ByTime


def as_chunking(chunk: Any) -> Chunking:
    """Return how to divide rows: a whole number is rows per chunk, a text a period, None one chunk.

    Raises:
        ValueError: if a text is no period or a number is below 1.
        TypeError: if it is nothing of these.
    """
    if isinstance(chunk, BySize | ByNumber | ByTime):
        return chunk
    if chunk is None:
        return ByNumber(1)
    if isinstance(chunk, bool):
        raise TypeError(f"chunk must be rows per chunk, a period such as '1M', or None, got {chunk!r}")
    if isinstance(chunk, int | np.integer):
        return BySize(int(chunk))
    if isinstance(chunk, str):
        return ByTime(chunk)
    raise TypeError(f"chunk must be rows per chunk, a period such as '1M', or None, got {type(chunk).__name__}")


def divide(chunking: Chunking, rows: int, time: np.ndarray | None = None) -> list[Int64[np.ndarray, " rows"] | slice]:
    """Return the rows of each chunk, in order; chunks by time hold rows in the order in which they came.

    Args:
        chunking: how to divide.
        rows: number of rows.
        time: of each row, ``datetime64``, for chunks by time.

    Raises:
        ValueError: if there are fewer rows than chunks, chunks by time have no times, or a time is missing.
    """
    if isinstance(chunking, BySize):
        return [slice(start, min(start + chunking.rows, rows)) for start in range(0, rows, chunking.rows)]
    if isinstance(chunking, ByNumber):
        if rows < chunking.number:
            raise ValueError(f"chunk: {rows} rows cannot be divided into {chunking.number} chunks")
        edges = [rows * i // chunking.number for i in range(chunking.number + 1)]
        return [slice(a, b) for a, b in pairwise(edges)]
    if time is None:
        raise ValueError(f"chunk {chunking.period!r} is a period and needs the column of times: set timestamp")
    if np.isnat(time).any():
        raise ValueError(f"timestamp must not be missing, got {int(np.isnat(time).sum())} rows without one")
    keys = chunking.keys(time)
    return [np.flatnonzero(keys == key) for key in np.unique(keys)]


def _parsed(period: str) -> tuple[int, str]:
    match = _PERIOD.fullmatch(period.strip())
    if match is None or match["count"] == "0":
        raise ValueError(f"chunk must be a period such as '1D', '1W', '1M', '1Q', '1Y' or '6h', got {period!r}")
    return int(match["count"] or 1), match["unit"]
