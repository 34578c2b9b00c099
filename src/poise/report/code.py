"""Lines of code in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from poise.report.plain import require_text

LANGUAGES = ("python", "diff", "bash", "text")


@dataclass(frozen=True, slots=True)
class Code:
    """Code to read or to copy.

    Args:
        title: heading above it.
        code: the lines.
        language: ``"python"``, ``"diff"``, ``"bash"`` or ``"text"``; decides the colours.

    Raises:
        TypeError: if an argument is not text.
        ValueError: if an argument is empty or the language unknown.
    """

    kind: ClassVar[str] = "code"
    title: str
    code: str
    language: str = "python"

    def __post_init__(self) -> None:
        require_text(self.title, "title")
        require_text(self.code, "code")
        if self.language not in LANGUAGES:
            raise ValueError(f"language must be one of {LANGUAGES}, got {self.language!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"kind": self.kind, "title": self.title, "code": self.code, "language": self.language}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Code:
        """Rebuild the code from :meth:`to_dict`."""
        return cls(data["title"], data["code"], data["language"])
