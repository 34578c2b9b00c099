"""The scripts of the clinic, made from healthy scripts and small edits of their text."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"

Harm = Literal["score", "loss", "contract", ""]


@dataclass(frozen=True, slots=True)
class Case:
    """One script of the clinic.

    Args:
        name: name of the script, for example ``"mlp-no-zero-grad"``.
        script: the healthy script that it is made from.
        what: what was done to it, in words; empty for the healthy script itself.
        causes: answers that count as right, the best first; empty for a healthy script.
        harm: ``"score"`` if the score of the script falls, ``"loss"`` if its loss shows it, ``"contract"`` if it does
            not do what it says, which neither has to show; empty for a healthy script.
        source: the text of the script.
    """

    name: str
    script: str
    what: str
    causes: tuple[str, ...]
    harm: Harm
    source: str

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing to find."""
        return not self.causes

    def label(self) -> dict[str, Any]:
        """Return what is known of the script, as plain JSON types."""
        return {
            "script": self.script,
            "what": self.what,
            "healthy": self.is_healthy,
            "causes": list(self.causes),
            "harm": self.harm,
        }


def edited(source: str, edits: list[list[str]], name: str) -> str:
    """Return a text with places replaced.

    Args:
        source: the text.
        edits: pairs of a text and its replacement, applied one after the other.
        name: of the case, for errors.

    Raises:
        ValueError: if a text to be replaced is not in ``source`` exactly once.
    """
    for old, new in edits:
        if (count := source.count(old)) != 1:
            raise ValueError(f"edits of {name!r} must match one place each, got {count} places for {old!r}")
        source = source.replace(old, new)
    return source


@cache
def cases() -> Mapping[str, Case]:
    """Return all cases by name: the healthy scripts, their healthy variants, and the faults.

    Raises:
        ValueError: if an edit does not match exactly one place of its script.
    """
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("*.py"))}
    result = {name: Case(name, name, "", (), "", source) for name, source in sources.items()}
    for file in ("controls.toml", "faults.toml"):
        for name, entry in tomllib.loads((HERE / file).read_text(encoding="utf-8")).items():
            source = edited(sources[entry["script"]], entry["edits"], name)
            causes, harm = tuple(entry.get("causes", ())), entry.get("harm", "")
            result[name] = Case(name, entry["script"], entry["what"], causes, harm, source)
    return result


def faults() -> tuple[Case, ...]:
    """Return the cases with a fault."""
    return tuple(case for case in cases().values() if not case.is_healthy)


def controls() -> tuple[Case, ...]:
    """Return the healthy cases."""
    return tuple(case for case in cases().values() if case.is_healthy)


def export(folder: Path) -> Path:
    """Write all scripts and a file ``labels.json`` into a folder; return the path of that file.

    Args:
        folder: made if it is not there. Files in it that have names of the clinic are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases().values():
        (folder / f"{case.name}.py").write_text(case.source, encoding="utf-8")
    labels = folder / "labels.json"
    text = json.dumps({case.name: case.label() for case in cases().values()}, indent=1, ensure_ascii=False)
    labels.write_text(text + "\n", encoding="utf-8")
    return labels
