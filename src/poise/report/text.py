"""A passage of prose in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from poise.report.plain import require_text


@dataclass(frozen=True, slots=True)
class Text:
    """Prose in Markdown (CommonMark and tables; raw HTML is shown as text, images become links).

    Args:
        markdown: the prose.
        title: heading above it; ``None`` for none.

    Raises:
        TypeError: if an argument is not text.
        ValueError: if an argument is empty.
    """

    kind: ClassVar[str] = "text"
    markdown: str
    title: str | None = None

    def __post_init__(self) -> None:
        require_text(self.markdown, "markdown")
        if self.title is not None:
            require_text(self.title, "title")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"kind": self.kind, "markdown": self.markdown, "title": self.title}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Text:
        """Rebuild the text from :meth:`to_dict`."""
        return cls(data["markdown"], data["title"])
