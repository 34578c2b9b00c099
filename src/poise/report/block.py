"""What a report is made of, and what a renderer reads of one."""

from __future__ import annotations

from typing import Any, Protocol

from poise.report.code import Code
from poise.report.figure import Figure
from poise.report.finding import Finding
from poise.report.table import Table
from poise.report.text import Text

Block = Text | Table | Figure | Code


class Content(Protocol):
    """The content of a report, as the renderers for HTML and terminals read it."""

    title: str
    summary: str
    findings: list[Finding]
    blocks: list[Block]
    meta: dict[str, Any]
    verdict: str | None
