"""A report in a terminal, through Rich."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table as Grid
from rich.text import Text as Line

from poise.report import words
from poise.report.code import Code
from poise.report.evidence_table import evidence_table
from poise.report.figure import Figure
from poise.report.finding import Finding
from poise.report.table import Table
from poise.report.text import Text
from poise.tools.listing import listing

if TYPE_CHECKING:
    from poise.report.block import Content

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold blue"}
_TONES = {"good": "bold green", "warning": "bold yellow", "bad": "bold red", "neutral": "bold"}
_MOST_ROWS = 20
_MOST_PLACES = 6  # of a finding
_BARS = "▁▂▃▄▅▆▇█"


def lines(report: Content) -> Iterator[RenderableType]:
    """Yield what Rich prints for ``report``, top to bottom.

    Everything is ``rich.text.Text``, never markup: ``[blocks.1.attn]`` in a name is text, not a style.
    """
    yield Rule(Line(report.title, style="bold"), align="left", style="dim")
    if report.verdict:
        yield Line.assemble(("Verdict: ", "dim"), (report.verdict, _TONES[words.tone_of(report.verdict)]))
    yield Line(report.summary)
    for finding in report.findings:
        yield Line()
        yield _finding(finding)
    for block in report.blocks:
        yield Line()
        yield _block(block)


def _finding(finding: Finding) -> RenderableType:
    style = _STYLES[finding.severity]
    head = Line.assemble(
        (finding.severity.upper(), style), "  ", (words.name_of(finding.cause), "bold"),
        (f"  confidence {words.percent(finding.probability)}", "dim"),
    )  # fmt: skip
    facts = Grid.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if finding.where:
        facts.add_row("where", Line(listing(finding.where, shown=_MOST_PLACES)))
    if when := _when(finding):
        facts.add_row("when", Line(when))
    if finding.remedies:
        facts.add_row("remedies", Line(", ".join(finding.remedies)))
    parts: list[RenderableType] = [Line(finding.summary), facts]
    if finding.evidence:
        parts.append(_grid(evidence_table(finding.evidence)))
    return Group(head, Padding(Group(*parts), (0, 0, 0, 2)))


def _when(finding: Finding) -> str:
    steps = (
        ("began at step", finding.onset_step),
        ("broke at", finding.event_step),
        ("recognised at", finding.detected_step),
    )
    return ", ".join(f"{what} {words.cell(step)}" for what, step in steps if step is not None)


def _block(block: Text | Table | Figure | Code) -> RenderableType:
    if isinstance(block, Text):
        body: RenderableType = Markdown(block.markdown)
    elif isinstance(block, Code):
        body = Syntax(block.code, block.language, background_color="default", word_wrap=True)
    elif isinstance(block, Table):
        body = Group(_grid(block), *_caption(block.caption))
    else:
        body = Group(_curves(block), *_caption(block.caption))
    heading = [Line(block.title, style="bold")] if block.title else []
    return Group(*heading, Padding(body, (0, 0, 0, 2)))


def _caption(caption: str | None) -> list[Line]:
    return [Line(caption, style="dim")] if caption else []


def _grid(table: Table) -> RenderableType:
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for i, (name, numeric) in enumerate(zip(table.columns, table.numeric_columns(), strict=True)):
        # Numbers and the names of rows are not broken; where a terminal is too narrow, an ellipsis shows it.
        whole = numeric or (i == 0 and max((len(words.cell(row[0])) for row in table.rows), default=0) <= 24)
        overflow: Literal["ellipsis", "fold"] = "ellipsis" if whole else "fold"
        grid.add_column(Line(name), justify="right" if numeric else "left", overflow=overflow, no_wrap=whole)
    for row in table.rows[:_MOST_ROWS]:
        grid.add_row(*(Line(words.cell(value)) for value in row))
    if len(table.rows) <= _MOST_ROWS:
        return grid
    return Group(grid, Line(f"the first {_MOST_ROWS} of {len(table.rows)} rows", style="dim"))


def _curves(figure: Figure) -> RenderableType:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    log = figure.has_log_y
    for curve in figure.series():
        y = curve.y
        if not curve.in_legend or y.dtype == object:
            continue
        height = np.log(np.where(y > 0, y, np.nan)) if log else y
        if np.isfinite(height).any():
            ends = f"{words.number(float(y[0]))} → {words.number(float(y[-1]))}"
            grid.add_row(Line(curve.name), Line(sparkline(height), style="cyan"), Line(ends))
    return grid if grid.row_count else Line(figure.alt)


def sparkline(y: np.ndarray, width: int = 32) -> str:
    """Return a curve as one line of block letters; each shows the highest finite value of its stretch.

    Args:
        y: values, at least one of them finite.
        width: number of letters, at most.
    """
    stretches = np.array_split(y, min(width, len(y)))
    tops = np.array([part[np.isfinite(part)].max(initial=-np.inf) for part in stretches])
    low, high = tops[np.isfinite(tops)].min(), tops.max()
    levels = (tops - low) / (high - low) if high > low else np.zeros_like(tops)
    return "".join(_BARS[round(7 * level)] if np.isfinite(level) else " " for level in levels)
