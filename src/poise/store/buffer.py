"""Rows of a group of signals that wait in memory to be written."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

CHUNK_BYTES = 64 * 1024


class Chunk:
    """A fixed number of rows, filled from the top."""

    __slots__ = ("rows", "steps", "values")

    def __init__(self, capacity: int, width: int) -> None:
        self.rows = 0
        self.steps = np.empty(capacity, np.int64)
        self.values = np.empty((capacity, width), np.float64)


class Buffer:
    """The waiting rows of one group. Not locked: the journal's lock guards every call."""

    def __init__(self, group_id: int, names: tuple[str, ...]) -> None:
        self.group_id = group_id
        self.names = names
        self.width = len(names)
        self._capacity = max(16, CHUNK_BYTES // (8 * self.width))
        self._full: list[Chunk] = []
        self._chunk = Chunk(self._capacity, self.width)

    def append(self, step: int, values: Sequence[float] | np.ndarray) -> int:
        """Add one row; return the size of the chunk that it filled (0 for most rows).

        Raises:
            ValueError: if ``values`` has not one number for each name.
            TypeError: if ``step`` is not an integer.
        """
        if len(values) != self.width:
            raise ValueError(f"values must hold {self.width} numbers, one for each name, got {len(values)}")
        # The row counts only after it is complete, and on the chunk it was written to: an interrupt or a flush from a
        # signal handler in between leaves no half row behind.
        chunk, row = self._chunk, self._chunk.rows
        chunk.values[row] = values
        chunk.steps[row] = operator.index(step)
        chunk.rows = row + 1
        if row + 1 < self._capacity:
            return 0
        self._full.append(chunk)
        self._chunk = Chunk(self._capacity, self.width)
        return chunk.values.nbytes

    def take(self) -> list[Chunk]:
        """Return all waiting rows and start with an empty buffer."""
        taken = self._full
        self._full = []
        if self._chunk.rows:
            taken.append(self._chunk)
            self._chunk = Chunk(self._capacity, self.width)
        return taken
