"""Blocks of columns of a table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import narwhals as nw
import numpy as np
from jaxtyping import Float

Blocks = Mapping[str, Sequence[Any]]
"""Columns, by name or by number, of each block."""


def block_matrices(
    table: Any, blocks: Blocks, name: str, columns: Sequence[Any] | None = None
) -> dict[str, Float[np.ndarray, "rows columns"]]:
    """Return the columns of each block as float64.

    Args:
        table: matrix, or pandas, Polars or Arrow table.
        blocks: columns of each block.
        name: of the table, in errors.
        columns: names of the columns of a matrix; their numbers by default.

    Raises:
        ValueError: if a column is missing, or a value is NaN or infinite.
    """
    frame = None if isinstance(table, np.ndarray) else nw.from_native(table, eager_only=True)
    has = frame.columns if frame is not None else list(range(table.shape[1]) if columns is None else columns)
    out = {}
    for block, wanted in blocks.items():
        missing = [column for column in wanted if column not in has]
        if missing:
            raise ValueError(f"{name} must have the columns {missing} of block {block!r}")
        if frame is None:
            matrix = table[:, [has.index(column) for column in wanted]]
        else:
            matrix = frame.select(list(wanted)).to_numpy()
        out[block] = np.asarray(matrix, dtype=np.float64)
        if not np.isfinite(out[block]).all():
            column = wanted[int(np.flatnonzero(~np.isfinite(out[block]).all(0))[0])]
            raise ValueError(f"{name}[{column!r}] must be finite, got NaN or infinity")
    return out


def checked_blocks(blocks: Blocks, table: Any, columns: Sequence[Any] | None = None) -> dict[str, list[Any]]:
    """Return blocks whose columns vary in the table, and warn of those that are dropped since they do not.

    Raises:
        ValueError: if there are no blocks, a block is empty, or a column is in two of them.
    """
    if not blocks:
        raise ValueError("blocks must name at least one block of columns, got none")
    used: dict[Any, str] = {}
    for block, wanted in blocks.items():
        for column in wanted:
            if column in used:
                raise ValueError(f"blocks must not overlap, got column {column!r} in {used[column]!r} and {block!r}")
            used[column] = block
    out = {}
    for block, matrix in block_matrices(table, blocks, "X", columns).items():
        constant = (matrix == matrix[:1]).all(0)
        if constant.any():
            dropped = [column for column, is_constant in zip(blocks[block], constant, strict=True) if is_constant]
            warnings.warn(f"block {block!r}: {dropped} are constant and are dropped", UserWarning, stacklevel=3)
        out[block] = [column for column, is_constant in zip(blocks[block], constant, strict=True) if not is_constant]
        if not out[block]:
            raise ValueError(f"block {block!r} must have a column that varies, got none")
    return out
