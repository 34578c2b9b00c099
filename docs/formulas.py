"""Formulas, tables and roles of docstrings, as MathML and Markdown: browsers draw both without a script."""

from __future__ import annotations

import re

import griffe
from latex2mathml.converter import convert

# A block formula goes on over the lines that are indented deeper than its first.
_BLOCK = re.compile(r"^(?P<indent>[ ]*)\.\. math::(?P<first>.*)\n(?P<rest>(?:(?P=indent)[ ]+\S.*\n?)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_TABLE = re.compile(r"^(?P<ruler>[ ]*=+(?:[ ]+=+)+)\n(?P<rows>(?:.*\S.*\n)+?)(?P=ruler)$", re.MULTILINE)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")


def render(text: str) -> str:
    """Turn ``:math:`` into MathML, tables into Markdown's, and other roles into code."""
    text = _BLOCK.sub(_block, text)
    # In a span, for Markdown would take a line that begins with <math> for a block of its own.
    text = _INLINE.sub(lambda m: f"<span>{convert(_joined(m[1]))}</span>", text)
    text = _TABLE.sub(_table, text)
    return _ROLE.sub(r"`\1`", text)


def _block(match: re.Match[str]) -> str:
    formula = convert(_joined(match["first"] + " " + match["rest"]), display="block")
    return f"{match['indent']}<div>{formula}</div>\n\n"


def _table(match: re.Match[str]) -> str:
    """Turn a table without a head, its columns marked by rulers, into Markdown's."""
    starts = [column.start() for column in re.finditer("=+", match["ruler"])]
    ends = [*starts[1:], None]
    rows = [
        [row[start:end].strip() for start, end in zip(starts, ends, strict=True)] for row in match["rows"].splitlines()
    ]
    lines = [[""] * len(starts), ["---"] * len(starts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _joined(tex: str) -> str:
    return " ".join(tex.split())


class Formulas(griffe.Extension):
    """Renders the docstrings of the API pages."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite the docstring of every object that has one."""
        if obj.docstring is not None:
            # The parser knows the section by its plural.
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = render(text)
