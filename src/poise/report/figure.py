"""A Plotly figure in a report, with its text alternative."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from poise.report.plain import plain_cell, require_text
from poise.report.table import Table
from poise.report.thinning import spread

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Enough to read a curve from; every series also keeps its lowest and highest point.
_POINTS_PER_SERIES = 40
_TYPED = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")  # what JavaScript's typed arrays hold


class Series(NamedTuple):
    """The points of one trace; the edges of a band, for example, are not in the legend."""

    name: str
    x: np.ndarray
    y: np.ndarray
    in_legend: bool


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Figure:
    """A Plotly figure.

    Args:
        title: heading above it.
        figure: the Plotly figure, or what it is made of: a dict with ``data``, a list of traces, and ``layout``. Such a
            dict is written as it is, which is fast; Plotly checks it when :attr:`figure` is read. Colours and fonts of
            the page replace the template.
        alt: what the figure shows, in words, for readers who cannot see it.
        caption: a sentence below the figure.

    Raises:
        TypeError: if ``figure`` is neither a Plotly figure nor a dict with ``data``, or a text is not text.
        ValueError: if ``title`` or ``alt`` is empty.
    """

    kind: ClassVar[str] = "figure"
    title: str
    alt: str
    caption: str | None
    _plot: go.Figure | Mapping[str, Any] = field(repr=False)

    def __init__(self, title: str, figure: go.Figure | Mapping[str, Any], alt: str, caption: str | None = None) -> None:
        require_text(title, "title")
        require_text(alt, "alt")
        if not ((isinstance(figure, Mapping) and "data" in figure) or _is_plotly_figure(figure)):
            kind = type(figure).__name__
            raise TypeError(f"figure must be a plotly.graph_objects.Figure or a dict with 'data', got {kind}")
        for name, value in (("title", title), ("alt", alt), ("caption", caption), ("_plot", figure)):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Figure) and self.to_dict() == other.to_dict()

    @property
    def figure(self) -> go.Figure:
        """The Plotly figure; changes to it are shown in the report.

        Raises:
            ValueError: if the dict that it was made of is not a Plotly figure.
        """
        if isinstance(self._plot, Mapping):
            import plotly.graph_objects as go  # here and not above: it takes longer than the rest of a report

            object.__setattr__(self, "_plot", go.Figure(self._plot))
        return self._plot

    def to_json(self) -> dict[str, Any]:
        """Return the Plotly figure as plain JSON types, without its template: the page has its own style."""
        if isinstance(self._plot, Mapping):
            plot = _plain({"data": self._plot["data"], "layout": self._plot.get("layout", {})})
        else:
            # Named, because the default engine depends on what else is installed.
            plot = json.loads(self._plot.to_json(engine="json"))
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
        return cls(data["title"], data["figure"], data["alt"], data["caption"])

    @property
    def has_log_y(self) -> bool:
        """Whether the vertical axis is logarithmic."""
        return self._axis("yaxis").get("type") == "log"

    def _axis(self, name: str) -> dict[str, Any]:
        axis: dict[str, Any] = self.to_json().get("layout", {}).get(name, {})
        return axis

    def _axis_title(self, letter: str) -> str:
        title = self._axis(f"{letter}axis").get("title")
        text = title.get("text") if isinstance(title, Mapping) else title  # Plotly takes both
        return text or letter

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
        columns = ["series", self._axis_title("x"), self._axis_title("y")]
        note = f"Up to {_POINTS_PER_SERIES} points of each series, evenly spread, with its lowest and highest."
        return Table("Data", columns, rows, note if thinned else None)


def _is_plotly_figure(value: Any) -> bool:
    import plotly.graph_objects as go

    return isinstance(value, go.Figure)


def _plain(value: Any) -> Any:
    """Return a part of a figure as Plotly's own ``to_json`` would, settings of ``None`` left out."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, np.ndarray):
        return _plain_array(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    value = plain_cell(value, "a value of a figure")
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _plain_array(values: np.ndarray) -> Any:
    if values.dtype.kind == "M":
        return np.datetime_as_string(values).tolist()
    if values.ndim != 1 or not len(values):
        return _plain(values.tolist())
    numbers = _for_javascript(values)
    name = f"{numbers.dtype.kind}{numbers.dtype.itemsize}"
    if name not in _TYPED:
        return _plain(values.tolist())
    data = numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
    return {"dtype": name, "bdata": base64.b64encode(data).decode("ascii")}


def _for_javascript(values: np.ndarray) -> np.ndarray:
    """Return integers of 64 bits, which a typed array cannot hold, with as few bits as they need."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return values
    low, high = int(values.min()), int(values.max())
    kinds = (np.int8, np.int16, np.int32)
    return next((values.astype(k) for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max), values)


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
