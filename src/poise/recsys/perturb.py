"""Small changes of a table of interactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import narwhals as nw
import numpy as np

Kind = Literal["delete", "replace", "insert"]
KINDS: tuple[Kind, ...] = ("delete", "replace", "insert")


def perturb(
    events: Any,
    rows: Sequence[int],
    kind: Kind = "delete",
    *,
    item: Any = "least_popular",
    seed: int = 0,
    columns: tuple[str, str, str] = ("user", "item", "time"),
) -> Any:
    """Return a table of interactions with a few of them deleted, given another item, or with new ones before them.

    Args:
        events: any table that Narwhals reads; it is not changed.
        rows: positions of the rows concerned, from 0.
        kind: ``"delete"``; ``"replace"``, which changes the item of each row; or ``"insert"``, which adds just before
            each row an event of the same user, one unit of time earlier.
        item: new item of ``"replace"`` and ``"insert"``: ``"least_popular"``, ``"random"`` (uniform over all items), or
            the label of an item that is in the table.
        seed: of the random items.
        columns: names of the columns of user, item and time.

    Returns:
        A table of the kind that came, other columns kept; new rows stand before the row that they precede.

    Raises:
        ValueError: if a column is missing, ``rows`` are out of range, repeated or none, all rows would be deleted, or
            ``kind`` or ``item`` is unknown.
    """
    table = nw.from_native(events, eager_only=True)
    _, item_name, time_name = columns
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"events must have the columns {columns}, got none named {missing[0]!r}")
    chosen = _checked_rows(rows, len(table))
    if kind == "delete":
        if len(chosen) == len(table):
            raise ValueError(f"rows must leave an event, got all {len(table)}")
        return table[np.setdiff1d(np.arange(len(table)), chosen).tolist()].to_native()
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    items = new_items(table[item_name].to_numpy(), len(chosen), item, seed)
    if kind == "replace":
        values = table[item_name].to_numpy().copy()
        values[chosen] = items
        return _with(table, item_name, values).to_native()
    order = np.sort(np.concatenate([np.arange(len(table)), chosen]))
    added = np.flatnonzero(np.concatenate([[False], order[1:] == order[:-1]])) - 1  # the first of two equal positions
    table = table[order.tolist()]
    values, times = table[item_name].to_numpy().copy(), table[time_name].to_numpy().copy()
    values[added] = items
    times[added] = times[added] - (np.timedelta64(1, "s") if times.dtype.kind == "M" else 1)
    return _with(_with(table, item_name, values), time_name, times).to_native()


def new_items(present: np.ndarray, count: int, item: Any, seed: int) -> np.ndarray:
    """Return the items that replace others or are inserted.

    Args:
        present: item of each event.
        count: how many are needed.
        item: ``"least_popular"``, ``"random"`` or a label.
        seed: of the random ones.

    Raises:
        ValueError: if ``item`` is neither a rule nor the label of an item that is there.
    """
    labels, popularity = np.unique(present, return_counts=True)
    if isinstance(item, str) and item == "least_popular":
        return np.repeat(labels[[popularity.argmin()]], count)
    if isinstance(item, str) and item == "random":
        return np.random.default_rng(seed).choice(labels, count)
    if not (labels == item).any():
        raise ValueError(f"item must be 'least_popular', 'random' or an item of the table, got {item!r}")
    return np.repeat(labels[labels == item], count)


def _checked_rows(rows: Sequence[int], count: int) -> np.ndarray:
    chosen = np.sort(np.asarray(rows, dtype=np.int64))
    if chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"rows must be at least one position, got {rows!r}")
    if chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(f"rows must be in 0 .. {count - 1}, got {chosen[0]} .. {chosen[-1]}")
    if (chosen[1:] == chosen[:-1]).any():
        raise ValueError("rows must be distinct")
    return chosen


def _with(table: nw.DataFrame[Any], name: str, values: np.ndarray) -> nw.DataFrame[Any]:
    dtype = table[name].dtype
    column = nw.new_series(name, values.tolist() if values.dtype == object else values, backend=table.implementation)
    return table.with_columns(column.cast(dtype) if column.dtype != dtype else column)
