"""A table in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from poise.report.plain import from_plain, plain_cell, require_text, to_plain
from poise.report.words import is_number

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of scalars under named columns.

    Args:
        title: heading above it.
        columns: one name per column.
        rows: one sequence per row, as long as ``columns``; cells are numbers (NumPy and zero-dimensional tensors
            too), text, bools, dates (kept as ISO text) or ``None``. NaN and infinities are kept and shown.
        caption: a sentence below the table.

    Raises:
        TypeError: if a cell is not a scalar.
        ValueError: if there are no columns or a row has another length.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str | None = None

    def __post_init__(self) -> None:
        require_text(self.title, "title")
        if isinstance(self.columns, str) or not len(self.columns):
            raise ValueError(f"columns must be a list of at least one name, got {self.columns!r}")
        object.__setattr__(self, "columns", [str(name) for name in self.columns])
        object.__setattr__(self, "rows", [self._clean(row, i) for i, row in enumerate(self.rows)])

    @classmethod
    def from_frame(cls, title: str, frame: Any, caption: str | None = None) -> Table:
        """Take the rows of a data frame.

        Args:
            title: heading above the table.
            frame: a pandas or Polars data frame or an Arrow table; the index of pandas is left out.
            caption: a sentence below the table.

        Raises:
            TypeError: if ``frame`` is none of these.
        """
        import narwhals as nw  # here and not above: most reports hold no data frame

        try:
            data = nw.from_native(frame, eager_only=True)
        except TypeError as error:
            raise TypeError(
                f"frame must be a pandas or Polars data frame or an Arrow table, got {type(frame).__name__}"
            ) from error
        return cls(title, data.columns, [list(row) for row in data.iter_rows()], caption)

    def numeric_columns(self) -> list[bool]:
        """Return for every column whether it holds numbers, so that it is set flush right."""
        present = [[row[i] for row in self.rows if row[i] is not None] for i in range(len(self.columns))]
        return [bool(cells) and all(is_number(cell) for cell in cells) for cells in present]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "kind": self.kind,
            "title": self.title,
            "columns": list(self.columns),
            "rows": to_plain(self.rows, "rows"),
            "caption": self.caption,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Table:
        """Rebuild the table from :meth:`to_dict`."""
        return cls(data["title"], data["columns"], from_plain(data["rows"]), data["caption"])

    def _clean(self, row: Sequence[Any], index: int) -> list[Cell]:
        if isinstance(row, str) or len(row) != len(self.columns):
            raise ValueError(f"rows[{index}] must have {len(self.columns)} cells, one per column, got {row!r}")
        cells = zip(self.columns, row, strict=True)
        return [plain_cell(value, f"rows[{index}], column {name!r},") for name, value in cells]
