"""The HTML page of a report: one file, no request to anywhere."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as markup_escape
from plotly.offline import get_plotlyjs

from poise.report import words
from poise.report.charts import PALETTE
from poise.report.evidence_table import evidence_table
from poise.report.figure import Figure
from poise.report.finding import Finding

if TYPE_CHECKING:
    from poise.report.block import Content

# A browser lays out a few thousand rows at once, not a million.
_MOST_ROWS = 2000


def page(report: Content) -> str:
    """Return the whole HTML page of ``report``."""
    figures = [block for block in report.blocks if isinstance(block, Figure)]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            anchors=_anchors(report),
            counts=_counts(report.findings),
            palette=PALETTE,
            plotly=_plotly_script() if figures else None,
            most_rows=_MOST_ROWS,
        )
    )


def notebook_cell(report: Content) -> str:
    """Return the page inside a frame, so that its styles and the notebook's do not affect each other."""
    return (
        f'<iframe title="{escape(report.title)}" srcdoc="{escape(page(report))}" '
        'sandbox="allow-scripts allow-popups" '
        'style="width:100%;height:46rem;border:1px solid #8884;border-radius:8px;resize:vertical"></iframe>'
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("poise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell,
        "code": _highlighted,
        "evidence_table": evidence_table,
        "figure_json": _figure_json,
        "markdown": _markdown,
        "name": words.name_of,
        "percent": words.percent,
        "tone": words.tone_of,
    }
    return environment


def _anchors(report: Content) -> list[str]:
    # Numbered, so that two blocks of one title have two addresses.
    titles = [re.sub(r"[^a-z0-9]+", "-", (block.title or "").lower()).strip("-") for block in report.blocks]
    return [f"{i}-{title}" if title else str(i) for i, title in enumerate(titles, start=1)]


def _counts(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    counted = ((severity, sum(f.severity == severity for f in findings)) for severity in ("error", "warning", "info"))
    return [(severity, n) for severity, n in counted if n]


def _markdown(text: str) -> Markup:
    from poise.report.markdown import rendered  # loaded only for a report with prose in it

    return Markup(rendered(text))


def _cell(value: Any) -> Markup:
    # On a narrow screen ``grad_norm[blocks.0]`` breaks before the bracket and not within a word.
    return Markup(str(markup_escape(words.cell(value))).replace("[", "<wbr>["))


def _highlighted(code: str, language: str) -> Markup:
    # Loaded only for a report with code in it.
    from pygments import highlight  # type: ignore[import-untyped]
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]

    return Markup(highlight(code, get_lexer_by_name(language), HtmlFormatter(nowrap=True)))


def _figure_json(figure: Figure) -> dict[str, Any]:
    plot = figure.to_json()
    layout = plot.get("layout", {})
    # The page sets the width of a figure.
    for name in ("width", "autosize"):
        layout.pop(name, None)
    return {"data": plot["data"], "layout": layout}


@cache
def _plotly_script() -> str:
    # Packed, the script takes 2 MB of the file and not 5; every browser since 2023 unpacks it. More effort in packing
    # takes three times as long and saves a seventh.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 1, mtime=0)).decode("ascii")
