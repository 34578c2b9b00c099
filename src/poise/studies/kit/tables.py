"""Tables and curves over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from poise.report import Figure, Table, line_chart


def record_table(title: str, rows: Sequence[Mapping[str, Any]], caption: str | None = None) -> Table:
    """Return a table of rows that name their columns.

    Args:
        title: of the table.
        rows: cells by column, at least one row, all with the columns of the first.
        caption: below the table.

    Raises:
        ValueError: if there is no row, or a row has other columns than the first.
    """
    if not rows:
        raise ValueError("rows must hold at least one row, got none")
    columns = list(rows[0])
    other = next((row for row in rows if list(row) != columns), None)
    if other is not None:
        raise ValueError(f"rows must all have the columns {columns}, got one with {list(other)}")
    return Table(title, columns, [list(row.values()) for row in rows], caption)


def seed_table(
    title: str,
    keys: Sequence[str],
    values: Mapping[Any, ArrayLike],
    quantity: str = "mean",
    caption: str = "",
    more: Mapping[str, Sequence[Any]] | None = None,
) -> Table:
    """Return a table with one row for each setting: mean, lowest and highest seed.

    Args:
        title: of the table.
        keys: columns that name a setting.
        values: one value a seed, by setting; a setting of several keys is a tuple.
        quantity: column of the mean.
        caption: below the table.
        more: further columns, one entry a row.
    """
    more = more or {}
    rows: list[list[Any]] = []
    for i, (setting, own) in enumerate(values.items()):
        of_seeds = np.asarray(own, dtype=float)
        parts = setting if isinstance(setting, tuple) else (setting,)
        statistics = [of_seeds.mean(), of_seeds.min(), of_seeds.max()]
        rows.append([*parts, *statistics, *(column[i] for column in more.values())])
    return Table(title, [*keys, quantity, "lowest seed", "highest seed", *more], rows, caption)


def mean_table(
    title: str, keys: Sequence[str], columns: Sequence[str], rows: Mapping[Any, Sequence[Any]], caption: str = ""
) -> Table:
    """Return a table with one row for each setting, of means over seeds.

    Args:
        title: of the table.
        keys: columns that name a setting.
        columns: the others.
        rows: by setting (a tuple where there are several keys), an entry for each of ``columns``: an array of one value
            a seed, of which the mean is shown, or a single number or word, which is shown as it is.
        caption: below the table.
    """
    shown = [
        [
            *(setting if isinstance(setting, tuple) else (setting,)),
            *(float(np.mean(entry)) if np.ndim(entry) else entry for entry in entries),
        ]
        for setting, entries in rows.items()
    ]
    return Table(title, [*keys, *columns], shown, caption)


def log_x(figure: Figure) -> Figure:
    """Give a chart a logarithmic horizontal axis, with powers of ten; return the chart."""
    figure.figure.update_xaxes(type="log", exponentformat="power")
    return figure


def seed_chart(
    title: str, curves: Mapping[str, tuple[ArrayLike, ArrayLike]], x_title: str, y_title: str, **options: Any
) -> Figure:
    """Return curves of means over seeds, each in a band from the lowest to the highest seed.

    Args:
        title: of the figure.
        curves: by name, the positions and the values, of shape (seeds, positions).
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        **options: of ``poise.report.line_chart``.
    """
    arrays = {name: (np.asarray(x), np.asarray(y, dtype=float)) for name, (x, y) in curves.items()}
    means = {name: (x, y.mean(0)) for name, (x, y) in arrays.items()}
    bands = {name: (x, y.min(0), y.max(0)) for name, (x, y) in arrays.items()}
    return line_chart(title, means, x_title, y_title, bands=bands, **options)
