"""The report: what every audit, trial and study returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.report.block import Block
from poise.report.code import Code
from poise.report.figure import Figure
from poise.report.finding import Finding
from poise.report.plain import from_plain, require_text, to_plain
from poise.report.table import Table
from poise.report.text import Text
from poise.tools.atomic_write import write_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_KINDS: dict[str, type[Text] | type[Table] | type[Figure] | type[Code]] = {
    block.kind: block for block in (Text, Table, Figure, Code)
}


@dataclass
class Report:
    """What was found: a verdict, findings, and the text, tables, figures and code that show it.

    Print it with Rich, end a notebook cell with it, ``save`` it as one HTML file, or keep its ``to_dict``.

    Args:
        title: what was examined.
        summary: the result in one or two plain sentences.
        findings: causes that were found, the most important first.
        blocks: what follows, in reading order.
        meta: facts about the making of the report (script, seeds, versions), of JSON types.
        verdict: the result in a few words, such as ``"proved"``.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if a text is empty.
    """

    title: str
    summary: str
    findings: list[Finding] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    verdict: str | None = None

    def __post_init__(self) -> None:
        require_text(self.title, "title")
        require_text(self.summary, "summary")
        if self.verdict is not None:
            require_text(self.verdict, "verdict")
        if not isinstance(self.meta, dict):
            raise TypeError(f"meta must be a dict, got {type(self.meta).__name__}")
        self.meta = from_plain(to_plain(self.meta, "meta"))
        self.findings = list(self.findings)
        for i, finding in enumerate(self.findings):
            if not isinstance(finding, Finding):
                raise TypeError(f"findings[{i}] must be a Finding, got {type(finding).__name__}")
        blocks, self.blocks = list(self.blocks), []
        for block in blocks:
            self.add(block)

    def add(self, block: Block) -> Report:
        """Append a block and return the report.

        Raises:
            TypeError: if ``block`` is not a Text, Table, Figure or Code.
        """
        if not isinstance(block, Block):
            raise TypeError(f"block must be a Text, Table, Figure or Code, got {type(block).__name__}")
        self.blocks.append(block)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`from_dict` reads them back.

        Raises:
            TypeError: if something in ``meta`` has no counterpart in JSON.
        """
        return {
            "title": self.title,
            "summary": self.summary,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "blocks": [block.to_dict() for block in self.blocks],
            "meta": to_plain(self.meta, "meta"),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Rebuild a report from :meth:`to_dict`.

        Raises:
            ValueError: if a block is of an unknown kind.
        """
        unknown = {block["kind"] for block in data["blocks"]} - _KINDS.keys()
        if unknown:
            raise ValueError(f"kind of a block must be one of {', '.join(_KINDS)}, got {', '.join(sorted(unknown))}")
        return cls(
            title=data["title"],
            summary=data["summary"],
            findings=[Finding.from_dict(finding) for finding in data["findings"]],
            blocks=[_KINDS[block["kind"]].from_dict(block) for block in data["blocks"]],
            meta=from_plain(data["meta"]),
            verdict=data["verdict"],
        )

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as one HTML page that needs no network; write it to ``path`` too, if given.

        Raises:
            IsADirectoryError: if ``path`` is a directory.
            OSError: if the file cannot be written there.
        """
        from poise.report.html import page  # Jinja2 and Plotly's script are loaded only where a page is made

        html = page(self)
        if path is not None:
            _write(Path(path), html)
        return html

    def save(self, path: str | Path) -> Path:
        """Write the HTML page, whole or not at all, and return its path.

        Args:
            path: file to write; missing folders are made, an existing file is replaced.

        Raises:
            IsADirectoryError: if ``path`` is a directory.
            OSError: if the file cannot be written there.
        """
        self.to_html(path)
        return Path(path)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from poise.report.terminal import lines

        yield from lines(self)

    def _repr_html_(self) -> str:
        from poise.report.html import notebook_cell

        return notebook_cell(self)


def _write(path: Path, text: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"path must name a file to write the report to, got the directory {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"path must be a place that can be written to, got {str(path)!r}: {reason}") from error
