"""The rows of one group on the reading side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from poise.store.blocks import Block
from poise.store.series import Series, sorted_series


class Columns:
    """Columns of one group of signals; the numbers are fetched on first use.

    Args:
        names: names of the signals.
        fetch: returns the blocks from the given row on, sorted; a block may begin before that row.
    """

    def __init__(self, names: tuple[str, ...], fetch: Callable[[int], list[Block]]) -> None:
        self.names = names
        self.rows = 0
        self.first_step = 0
        self.last_step = -1
        self._fetch = fetch
        self._index = {name: i for i, name in enumerate(names)}
        self._blocks: list[Block] = []
        self._series: dict[str, Series] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def grow(self, rows: int, first_step: int, last_step: int) -> None:
        """Set the number of rows of the group and the span of their steps."""
        if rows != self.rows:
            self._series.clear()
        self.rows, self.first_step, self.last_step = rows, first_step, last_step

    def series(self, name: str) -> Series:
        """Return one signal, sorted by step."""
        if name not in self._series:
            self._series[name] = self._read(self._index[name])
        return self._series[name]

    def _read(self, column: int) -> Series:
        self._load()
        steps = np.concatenate([block.steps for block in self._blocks])
        values = np.concatenate([block.values[column] for block in self._blocks])
        # A live run may have grown since the last refresh: what came after it is not part of the record yet.
        steps, values = steps[: self.rows], values[: self.rows]
        steps.setflags(write=False)
        values.setflags(write=False)
        return sorted_series(steps, values)

    def _load(self) -> None:
        loaded = self._blocks[-1].end if self._blocks else 0
        if loaded >= self.rows:
            return
        fresh = self._fetch(loaded)
        # The writer joins small blocks: a fetched block may contain ones that are here already.
        while self._blocks and fresh and self._blocks[-1].start >= fresh[0].start:
            self._blocks.pop()
        self._blocks += fresh
