"""Charts that rooms put into reports: one style, one colour-blind-safe palette, spikes kept when curves are thinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poise.report.figure import Figure
from poise.report.plain import require_text
from poise.report.thinning import thin
from poise.report.words import number

# After Okabe and Ito's palette; black and yellow are left out and blue is lighter, to be readable on both themes.
PALETTE = ("#1f7fc4", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot")
_MOST_POINTS = 5000
_NEUTRAL = "#7d8590"

Points = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
Curve = tuple[np.ndarray, np.ndarray]
Trace = dict[str, Any]  # as Plotly's schema has it; a graph object would check it, which is slow


def line_chart(
    title: str,
    series: Mapping[str, Points],
    x_title: str,
    y_title: str,
    log_y: bool = False,
    markers: Mapping[str, float] | None = None,
    bands: Mapping[str, tuple[Any, Any, Any]] | None = None,
    alt: str | None = None,
) -> Figure:
    """Draw curves over one axis.

    Args:
        title: heading of the figure.
        series: label -> ``(x, y)``, each of shape (points,). NaN and infinities leave a gap. A curve of more than 5000
            points is thinned but keeps its extremes.
        x_title: what the horizontal axis shows, with its unit.
        y_title: what the vertical axis shows, with its unit.
        log_y: logarithmic vertical axis; the caption counts the points that it cannot show.
        markers: label -> x of a vertical line.
        bands: label -> ``(x, low, high)``; a band takes the colour of the series with its label.
        alt: what the chart shows, in words; by default the ends and extremes of each curve.

    Raises:
        ValueError: if there are no series, shapes disagree, or a band has no series of its label.
    """
    curves = _checked(series)
    _check_bands(bands or {}, curves)
    traces: list[Trace] = []
    for i, (label, (x, y)) in enumerate(curves.items()):
        if bands and label in bands:
            traces += _band(label, *bands[label], color=_color(i))
        line = {"color": _color(i), "width": 2, "dash": _dash(i)}
        keep = thin(y, _MOST_POINTS)
        mode = "lines+markers" if len(y) == 1 else "lines"
        traces.append(_scatter(x=x[keep], y=y[keep], name=label, legendgroup=label, mode=mode, line=line))
    layout = {"hovermode": "x unified", **_plane(curves, x_title, y_title, log_y)}
    if markers:
        layout |= _marked(markers, np.concatenate([x for x, _ in curves.values()]))
    caption = _lost_on_log_axis(curves) if log_y else None
    return Figure(
        title, {"data": traces, "layout": layout}, alt or _describe("Line chart", curves, x_title, y_title), caption
    )


def scatter_chart(
    title: str,
    series: Mapping[str, Points],
    x_title: str,
    y_title: str,
    log_y: bool = False,
    alt: str | None = None,
) -> Figure:
    """Draw points in a plane, one symbol and colour per label.

    Args:
        title: heading of the figure.
        series: label -> ``(x, y)``, each of shape (points,).
        x_title: what the horizontal axis shows, with its unit.
        y_title: what the vertical axis shows, with its unit.
        log_y: logarithmic vertical axis; the caption counts the points that it cannot show.
        alt: what the chart shows, in words; by default the ends and extremes of each series.

    Raises:
        ValueError: if there are no series or shapes disagree.
    """
    curves = _checked(series)
    symbols = ("circle", "diamond", "square", "triangle-up", "cross", "x")
    traces = []
    for i, (label, (x, y)) in enumerate(curves.items()):
        marker = {"color": _color(i), "size": 8, "opacity": 0.8, "symbol": symbols[i % len(symbols)]}
        traces.append(_scatter(x=x, y=y, name=label, mode="markers", marker=marker))
    plot = {"data": traces, "layout": _plane(curves, x_title, y_title, log_y)}
    caption = _lost_on_log_axis(curves) if log_y else None
    return Figure(title, plot, alt or _describe("Scatter chart", curves, x_title, y_title), caption)


def bar_chart(
    title: str,
    bars: Mapping[str, float],
    y_title: str,
    errors: Mapping[str, tuple[float, float]] | None = None,
    alt: str | None = None,
) -> Figure:
    """Draw one bar per label.

    Args:
        title: heading of the figure.
        bars: label -> height.
        y_title: what the bars measure, with its unit.
        errors: label -> ``(low, high)`` ends of its interval, in the unit of the bars.
        alt: what the chart shows, in words; by default every label with its height.

    Raises:
        ValueError: if there are no bars, or ``errors`` names a bar that does not exist or excludes its height.
    """
    if not bars:
        raise ValueError("bars must hold at least one bar, got none")
    heights = {str(label): float(height) for label, height in bars.items()}
    error_y = _error_bars(heights, errors) if errors else None
    bar: Trace = {
        "type": "bar",
        "x": list(heights),
        "y": list(heights.values()),
        "marker": {"color": PALETTE[0]},
        "error_y": error_y,
        "name": y_title,
    }
    axes = {"xaxis": {"type": "category"}, "yaxis": {"title": {"text": y_title}}}
    plot = {"data": [bar], "layout": {"showlegend": False, "bargap": 0.5, **axes}}
    heights_text = "; ".join(f"{label}: {number(height)}" for label, height in heights.items())
    return Figure(title, plot, alt or f"Bar chart of {y_title}. {heights_text}.")


def _checked(series: Mapping[str, Points]) -> dict[str, Curve]:
    if not series:
        raise ValueError("series must hold at least one curve, got none")
    curves = {}
    for label, (x, y) in series.items():
        require_text(label, "label of a series")
        curve = np.asarray(x), np.asarray(y, dtype=float)
        if curve[1].ndim != 1 or curve[0].shape != curve[1].shape:
            raise ValueError(
                f"series[{label!r}] must be two arrays of shape (points,), got {curve[0].shape} and {curve[1].shape}"
            )
        curves[label] = curve
    return curves


def _check_bands(bands: Mapping[str, Any], curves: Mapping[str, Any]) -> None:
    for label, band in bands.items():
        if label not in curves:
            raise ValueError(f"bands must use labels of series ({', '.join(curves)}), got {label!r}")
        shapes = [np.shape(part) for part in band]
        if len(shapes) != 3 or len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"bands[{label!r}] must be (x, low, high), each of shape (points,), got shapes {shapes}")


def _band(label: str, x: Any, low: Any, high: Any, color: str) -> list[Trace]:
    x, low, high = np.asarray(x), np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    keep = np.union1d(thin(low, _MOST_POINTS // 2), thin(high, _MOST_POINTS // 2))
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    edge = {"x": x[keep], "mode": "lines", "line": {"width": 0}, "legendgroup": label, "showlegend": False}
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.18)"}
    return [
        _scatter(y=low[keep], name=f"{label} (low)", hoverinfo="skip", **edge),
        _scatter(y=high[keep], name=f"{label} (high)", hoverinfo="skip", **edge, **fill),
    ]


def _scatter(**settings: Any) -> Trace:
    return {"type": "scatter", **settings}


def _marked(markers: Mapping[str, float], x: np.ndarray) -> dict[str, Any]:
    """Return the parts of a layout that draw vertical lines, labelled."""
    span = (min(x.min(), *markers.values()), max(x.max(), *markers.values())) if len(x) else (0, 1)
    shapes, labels = [], []
    for i, (label, position) in enumerate(sorted(markers.items(), key=lambda item: item[1])):
        # Labels are on rows of their own, and point away from the nearer edge.
        right_half = position > (span[0] + span[1]) / 2
        line = {"color": _NEUTRAL, "width": 1.5, "dash": "dot"}
        shapes.append({"type": "line", "x0": position, "x1": position, "y0": 0, "y1": 1, "yref": "paper", "line": line})
        labels.append(
            {
                "x": position,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": 2 + 16 * (i % 3),
                "xanchor": "right" if right_half else "left",
                "text": _plain_label(label),
                "showarrow": False,
                "font": {"size": 12},
            }
        )
    return {"shapes": shapes, "annotations": labels, "margin": {"t": 28 + 16 * min(2, len(markers) - 1)}}


def _plain_label(label: str) -> str:
    # Plotly reads a few HTML tags in annotations; a label is text.
    return str(label).replace("&", "&amp;").replace("<", "&lt;")


def _plane(curves: Mapping[str, Curve], x_title: str, y_title: str, log_y: bool) -> dict[str, Any]:
    """Return the parts of a layout that every plane has: legend and axes."""
    y_axis = {"title": {"text": y_title}, "exponentformat": "power", **(_log_axis(curves) if log_y else {})}
    return {"showlegend": len(curves) > 1, "xaxis": {"title": {"text": x_title}}, "yaxis": y_axis}


def _log_axis(curves: Mapping[str, Curve]) -> dict[str, Any]:
    heights = np.concatenate([y for _, y in curves.values()])
    heights = heights[np.isfinite(heights) & (heights > 0)]
    decades = np.log10(heights.max() / heights.min()) if len(heights) else 0
    # Over two to eight decades a label at every power of ten is clearest; elsewhere Plotly's own choice is.
    return {"type": "log", "minor": {"ticks": "outside"}, "dtick": 1 if 2 <= decades <= 8 else None}


def _lost_on_log_axis(curves: Mapping[str, Curve]) -> str | None:
    lost = {label: int((y <= 0).sum()) for label, (_, y) in curves.items()}
    hidden = ", ".join(f"{n} of {label}" for label, n in lost.items() if n)
    return f"Not shown, because a logarithmic axis has no zero or negative values: {hidden}." if hidden else None


def _error_bars(heights: Mapping[str, float], errors: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    for label, (low, high) in errors.items():
        if label not in heights:
            raise ValueError(f"errors must use labels of bars ({', '.join(heights)}), got {label!r}")
        if not low <= heights[label] <= high:
            raise ValueError(f"errors[{label!r}] must enclose {heights[label]}, got ({low}, {high})")
    # A bar without an interval gets none, which is not the same as one of no length.
    up = [errors[label][1] - height if label in errors else None for label, height in heights.items()]
    down = [height - errors[label][0] if label in errors else None for label, height in heights.items()]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": _NEUTRAL, "thickness": 1.5}


def _describe(kind: str, curves: Mapping[str, Curve], x_title: str, y_title: str) -> str:
    return f"{kind} of {y_title} over {x_title}. " + " ".join(_describe_curve(*item) for item in curves.items())


def _describe_curve(label: str, curve: Curve) -> str:
    x, y = curve
    if not len(y):
        return f"{label}: no points."
    finite = np.flatnonzero(np.isfinite(y))
    if not len(finite):
        return f"{label}: no finite value among {len(y)} points."
    low, high = finite[y[finite].argmin()], finite[y[finite].argmax()]
    ends = f"{label}: from {number(float(y[0]))} to {number(float(y[-1]))}"
    lowest, highest = f"lowest {number(float(y[low]))} at {x[low]}", f"highest {number(float(y[high]))} at {x[high]}"
    return f"{ends}, {lowest}, {highest}."


def _color(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _dash(i: int) -> str:
    # Colours repeat after six curves and the later ones are close in print: the dash distinguishes them.
    return _DASHES[(i // 3) % len(_DASHES)]
