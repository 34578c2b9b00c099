"""The rules over one kind of facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from poise.rules.rule import Rule


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules over one kind of facts: the doctor's causes, or the rules of one audit.

    Args:
        name: a word or two, such as ``"init audit"``.
        room: the room it belongs to.
        found_by: what the user calls, in Markdown, such as ``"`poise run`"``.
        rules: the rules, in the order in which listings show them.
        families: the families by which listings group the rules, in order; none: they are one list.

    Raises:
        ValueError: if two rules have the same id, or the family of one is not in ``families``.
    """

    name: str
    room: str
    found_by: str
    rules: tuple[Rule[Any], ...]
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = [rule.id for rule in self.rules]
        if twice := {id for id in ids if ids.count(id) > 1}:
            raise ValueError(f"rules must have ids of their own, got {sorted(twice)} twice in {self.name!r}")
        strange = {rule.id: rule.family for rule in self.rules if rule.family not in self.families}
        if self.families and strange:
            raise ValueError(f"families of {self.name!r} must be among {self.families}, got {strange}")

    def __iter__(self) -> Iterator[Rule[Any]]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)
