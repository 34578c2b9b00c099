"""A Plotly figure in a report, with its text alternative."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import plotly.graph_objects as go

from poise.report.plain import plain_cell, require_text
from poise.report.table import Table
from poise.report.thinning import spread

# Enough to read a curve from; every series also keeps its lowest and highest point.
_POINTS_PER_SERIES = 40


class Series(NamedTuple):
    """The points of one trace; the edges of a band, say, are not in the legend."""

    name: str
    x: np.ndarray
    y: np.ndarray
    in_legend: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """A Plotly figure.

    Args:
        title: heading above it.
        figure: the Plotly figure; colours and fonts of the page replace its template.
        alt: what the figure shows, in words, for readers who do not see it.
        caption: a sentence below the figure.

    Raises:
        TypeError: if ``figure`` is not a Plotly figure or a text is not text.
        ValueError: if ``title`` or ``alt`` is empty.
    """

    kind: ClassVar[str] = "figure"
    title: str
    figure: go.Figure
    alt: str
    caption: str | None = None

    def __post_init__(self) -> None:
        require_text(self.title, "title")
        require_text(self.alt, "alt")
        if not isinstance(self.figure, go.Figure):
            raise TypeError(f"figure must be a plotly.graph_objects.Figure, got {type(self.figure).__name__}")

    def to_json(self) -> dict[str, Any]:
        """Return the Plotly figure as plain JSON types, without its template: the page has its own look."""
        # Named, because the default engine depends on what else is installed.
        plot = json.loads(self.figure.to_json(engine="json"))
        plot.get("layout", {}).pop("template", None)
        return plot

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "kind": self.kind,
            "title": self.title,
            "figure": self.to_json(),
            "alt": self.alt,
            "caption": self.caption,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Figure:
        """Rebuild the figure from :meth:`to_dict`."""
        return cls(data["title"], go.Figure(data["figure"]), data["alt"], data["caption"])

    def series(self) -> list[Series]:
        """Return every trace that has points in a plane."""
        return [
            Series(trace.get("name") or f"series {i + 1}", *points, in_legend=trace.get("showlegend", True))
            for i, trace in enumerate(self.to_json()["data"])
            if (points := _points(trace)) is not None
        ]

    def data_table(self) -> Table | None:
        """Return the points of the figure as a table; ``None`` if no trace has points in a plane."""
        rows = []
        thinned = False
        for name, x, y, _ in self.series():
            keep = spread(y, _POINTS_PER_SERIES)
            thinned |= len(keep) < len(y)
            rows += [[name, _scalar(x[i]), _scalar(y[i])] for i in keep]
        if not rows:
            return None
        layout = self.figure.layout
        columns = ["series", layout.xaxis.title.text or "x", layout.yaxis.title.text or "y"]
        note = f"Up to {_POINTS_PER_SERIES} points of each series, evenly spread, with its lowest and highest."
        return Table("Data", columns, rows, note if thinned else None)


def _points(trace: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    y, x = _array(trace.get("y")), _array(trace.get("x"))
    if y is None or y.ndim != 1 or not len(y):
        return None
    if x is None:
        x = np.arange(len(y))
    return (x, y) if x.shape == y.shape else None


def _array(values: Any) -> np.ndarray | None:
    # Plotly writes typed arrays as base64 beside their dtype, everything else as a list.
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]).newbyteorder("<"))
        return flat.reshape([int(n) for n in str(values["shape"]).split(",")]) if "shape" in values else flat
    if values is None:
        return None
    try:
        return np.asarray([np.nan if v is None else v for v in values], dtype=float)
    except (TypeError, ValueError):
        return np.asarray([str(v) for v in values], dtype=object)


def _scalar(value: Any) -> Any:
    value = plain_cell(value, "point")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
