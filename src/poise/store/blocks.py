"""Blocks: how the rows of a group are stored in the file, and how small blocks are merged."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from poise.store.buffer import CHUNK_BYTES, Chunk
from poise.store.schema import STEPS_DTYPE, VALUES_DTYPE

# A block stops growing here: small enough to write in a millisecond, large enough that a long run has few.
BLOCK_BYTES = 1 << 20
CHUNKS_AT_ONCE = BLOCK_BYTES // CHUNK_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows ``start`` to ``start + rows - 1`` of a group, one signal after the other."""

    start: int
    steps: Int64[np.ndarray, " rows"]
    values: Float64[np.ndarray, "names rows"]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.steps)

    @property
    def end(self) -> int:
        """Number of the row after the last."""
        return self.start + self.rows

    @classmethod
    def of_chunks(cls, start: int, chunks: list[Chunk]) -> Block:
        """Turn waiting rows into a block."""
        steps = np.concatenate([chunk.steps[: chunk.rows] for chunk in chunks])
        values = np.concatenate([chunk.values[: chunk.rows].T for chunk in chunks], axis=1)
        return cls(start, steps, np.ascontiguousarray(values))

    def joined(self, later: Block) -> Block:
        """Return this block and the one that follows it as one."""
        steps = np.concatenate([self.steps, later.steps])
        return Block(self.start, steps, np.concatenate([self.values, later.values], axis=1))


class BlockLog:
    """The blocks of one group as the writer adds them.

    A flush every fraction of a second would leave a long run with many tiny blocks. Instead a new block is merged with
    the blocks before it that are not larger than itself (as in a binary counter): every value is rewritten a
    logarithmic number of times and the number of blocks stays small. Only blocks that may still grow are kept in
    memory.
    """

    def __init__(self, group_id: int) -> None:
        self._group_id = group_id
        self._growing: list[Block] = []
        self._rows = 0

    def write(self, connection: sqlite3.Connection, chunks: list[Chunk]) -> None:
        """Add waiting rows, inside the caller's transaction."""
        # In portions: handing a long blob to SQLite holds the interpreter's lock while it is copied.
        for first in range(0, len(chunks), CHUNKS_AT_ONCE):
            self._add(connection, chunks[first : first + CHUNKS_AT_ONCE])

    def _add(self, connection: sqlite3.Connection, chunks: list[Chunk]) -> None:
        block = Block.of_chunks(self._rows, chunks)
        self._rows = block.end
        while self._growing and self._growing[-1].rows <= block.rows and self._fits(block):
            block = self._merge_before(connection, block)
        self._insert(connection, block)
        if block.values.nbytes < BLOCK_BYTES // 2:
            self._growing.append(block)
        else:
            self._growing = []

    def compact(self, connection: sqlite3.Connection) -> None:
        """Join what may still grow into one block: the run has ended."""
        if len(self._growing) < 2:
            return
        block = self._growing.pop()
        self._delete(connection, block)
        while self._growing:
            block = self._merge_before(connection, block)
        self._insert(connection, block)

    def _fits(self, block: Block) -> bool:
        return self._growing[-1].values.nbytes + block.values.nbytes <= BLOCK_BYTES

    def _merge_before(self, connection: sqlite3.Connection, block: Block) -> Block:
        earlier = self._growing.pop()
        self._delete(connection, earlier)
        return earlier.joined(block)

    def _delete(self, connection: sqlite3.Connection, block: Block) -> None:
        connection.execute("DELETE FROM blocks WHERE group_id = ? AND start = ?", (self._group_id, block.start))

    def _insert(self, connection: sqlite3.Connection, block: Block) -> None:
        first, last = int(block.steps.min()), int(block.steps.max())
        steps, values = block.steps.astype(STEPS_DTYPE, copy=False), block.values.astype(VALUES_DTYPE, copy=False)
        connection.execute(
            "INSERT INTO blocks VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
            (self._group_id, block.start, block.rows, first, last, steps.data, values.data),
        )
