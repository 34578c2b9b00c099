"""A causal graph as a figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poise.report import Figure
from poise.report.charts import PALETTE
from poise.shift.minimax.stable_graph import StableGraph


def graph_figure(graph: StableGraph, kept: Iterable[str] = ()) -> Figure:
    """Draw a graph from causes on the left to effects on the right.

    Args:
        graph: the graph.
        kept: stable inputs that are kept.
    """
    places, chosen = _places(graph), set(kept)
    groups = {
        "target": [graph.target],
        "changes between environments": list(graph.mutable),
        "stable, kept": [name for name in graph.stable if name in chosen],
        "stable, left out": [name for name in graph.stable if name not in chosen],
    }
    traces: list[dict[str, Any]] = []
    for color, symbol, (label, names) in zip(
        PALETTE, ("star", "square", "circle", "circle-open"), groups.items(), strict=False
    ):
        if names:
            x, y = zip(*(places[name] for name in names), strict=True)
            traces.append({
                "type": "scatter", "mode": "markers+text", "x": x, "y": y, "text": names, "name": label,
                "textposition": "top center", "marker": {"size": 16, "symbol": symbol, "color": color},
            })  # fmt: skip
    arrows = [
        {"x": places[b][0], "y": places[b][1], "ax": places[a][0], "ay": places[a][1], "xref": "x", "yref": "y",
         "axref": "x", "ayref": "y", "showarrow": True, "arrowhead": 2, "standoff": 9, "startstandoff": 9, "text": "",
         "arrowcolor": "#7d8590"}
        for a, b in graph.edges
    ]  # fmt: skip
    hidden = {"visible": False}
    layout = {"annotations": arrows, "xaxis": hidden, "yaxis": hidden}
    edges = "; ".join(f"{a} to {b}" for a, b in graph.edges)
    return Figure("The graph", {"data": traces, "layout": layout}, f"Causal graph with edges {edges}.")


def _places(graph: StableGraph) -> dict[str, tuple[float, float]]:
    depth: dict[str, int] = {}
    for name in graph.order:
        depth[name] = 1 + max((depth[parent] for parent in graph.parents(name)), default=-1)
    out = {}
    for level in range(max(depth.values()) + 1):
        names = [name for name in graph.order if depth[name] == level]
        for i, name in enumerate(names):
            out[name] = (float(level), (i - (len(names) - 1) / 2) + 0.25 * (level % 2))
    return out
