"""The entries of live remedies in the catalogue, made of their modules' docstrings."""

from __future__ import annotations

import inspect
import sys

from poise.doctor.remedies import REMEDIES, Remedy
from poise.rules.documented_remedy import DocumentedRemedy


def documented(remedy: type[Remedy]) -> DocumentedRemedy:
    """Return the entry of a remedy that acts on live runs, with the code of its default strength.

    Args:
        remedy: its class; the docstring of its module is the documentation.
    """
    doc = inspect.cleandoc(sys.modules[remedy.__module__].__doc__ or "")
    head, mark, references = doc.partition("## References\n")
    doc = head + mark + "".join(f"- {entry}\n" for entry in _entries(references))
    return DocumentedRemedy(remedy.name, doc.partition("\n")[0].rstrip("."), doc, "live", remedy().code())


def _entries(references: str) -> list[str]:
    # The docstrings write one reference after the other; each ends with a full stop at the end of a line.
    entries: list[str] = []
    for line in references.strip().splitlines():
        if entries and not entries[-1].endswith("."):
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip().removeprefix("- "))
    return entries


DOCUMENTED = {name: documented(remedy) for name, remedy in REMEDIES.items()}
"""By name."""
