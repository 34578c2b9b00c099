"""The documentation of a remedy, whether poise can apply it or only show its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RemedyKind = Literal["live", "surgery", "code"]

KINDS: dict[RemedyKind, str] = {
    "live": "applied by poise to a live run",
    "surgery": "applied by one call that changes the model",
    "code": "lines for the script",
}
"""What each kind means, for a reader."""

SECTIONS = ("What it does", "When it helps", "What it costs", "Making it permanent", "References")
"""Headings of the documentation of a remedy, in this order."""


@dataclass(frozen=True, slots=True)
class DocumentedRemedy:
    """The entry of a remedy in the catalogue.

    The object that acts on a live run is a :class:`poise.doctor.Remedy`, whose class has such an entry; remedies by
    surgery or by code have only the entry.

    Args:
        name: identifier, equal to the name of the module that documents it.
        title: what it does, as an imperative of a few words.
        doc: documentation in Markdown, with the sections of :data:`SECTIONS`: the docstring of the remedy's module.
        kind: ``"live"``, ``"surgery"`` or ``"code"``.
        code: the lines that apply it.
        language: of the code, ``"python"`` or ``"diff"``.
    """

    name: str
    title: str
    doc: str | None
    kind: RemedyKind
    code: str
    language: str = "python"
