"""Code blocks of a page that can be run: those below a comment ``<!-- run: NAME -->`` (or ``<!-- run -->``)."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass

_BLOCK = re.compile(
    r"^<!-- run(?:: (?P<name>[\w-]+))? -->\n```(?P<language>python|console)\n(?P<code>.*?)^```\n",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block that is run.

    Args:
        name: name of its output; ``None`` if the page does not show the output.
        language: ``"python"`` or ``"console"`` (lines that begin with ``$`` are commands).
        code: the text of the block.
        end: where in the page the block ends.
    """

    name: str | None
    language: str
    code: str
    end: int

    @property
    def digest(self) -> str:
        """A hash that identifies this code; comments and layout do not count."""
        meaning = ast.dump(ast.parse(self.code)) if self.language == "python" else "\n".join(self.commands)
        return hashlib.sha256(" ".join(meaning.split()).encode()).hexdigest()[:16]

    @property
    def commands(self) -> list[str]:
        """The commands of a console block; a line that ends with a backslash continues in the next one."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def find_blocks(page: str) -> list[Block]:
    """Return the runnable blocks of a page in Markdown, in order."""
    return [Block(m["name"], m["language"], m["code"], m.end()) for m in _BLOCK.finditer(page)]
