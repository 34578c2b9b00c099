"""The table of contents of the catalogue, for listings in a terminal and on the site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise.rules.catalogue import Catalogue
from poise.rules.documented_remedy import KINDS
from poise.rules.rule_set import RuleSet


@dataclass(frozen=True, slots=True)
class Group:
    """A part of a listing.

    Args:
        chapter: what it belongs to: the causes, the rules of one audit, the remedies. In Markdown.
        heading: what its entries have in common; empty if the chapter is one list.
        entries: pairs of name and title.
    """

    chapter: str
    heading: str
    entries: Sequence[tuple[str, str]]


def contents(known: Catalogue) -> list[Group]:
    """Return the contents of a catalogue: causes by family, rules by audit, remedies by how they are applied."""
    groups = [group for rules in known.rule_sets for group in rule_groups(rules)]
    for kind, meaning in KINDS.items():
        entries = [(r.name, r.title) for r in known.remedies.values() if r.kind == kind]
        groups.append(Group("Remedies", meaning, entries))
    return groups


def rule_groups(rules: RuleSet) -> list[Group]:
    """Return the rules of one set, by family where the set has families."""
    chapter = f"{rules.name[:1].upper()}{rules.name[1:]}, found by {rules.found_by}"
    if not rules.families:
        return [Group(chapter, "", [(rule.id, rule.title) for rule in rules])]
    return [
        Group(chapter, family, [(rule.id, rule.title) for rule in rules if rule.family == family])
        for family in rules.families
    ]
