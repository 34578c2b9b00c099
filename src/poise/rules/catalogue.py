"""The one catalogue: everything that poise can find, and every remedy it names.

Each room lists its own rules and remedies; this file holds where those lists are. They are loaded on first use, so that
the catalogue imports no room early, and importing a room registers nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from poise.rules.documented_remedy import DocumentedRemedy
from poise.rules.rule import Rule
from poise.rules.rule_set import RuleSet
from poise.tools.nearest_name import did_you_mean

RULE_SETS = (
    "poise.doctor.causes:RULES",
    "poise.preflight.init_audit.rules:RULES",
    "poise.preflight.perturbation_audit.rules:RULES",
    "poise.dynamics.training_audit.rules:RULES",
    "poise.recsys.recommender_audit.rules:RULES",
    "poise.loops.loop_audit.rules:RULES",
    "poise.sensitivity.retraining_audit.rules:RULES",
    "poise.loops.augmentation_audit.rules:RULES",
    "poise.causal.effect_audit.rules:RULES",
    "poise.shift.deployment_audit.rules:RULES",
    "poise.continual.update_audit.rules:RULES",
    "poise.continual.evaluation.rules:RULES",
    "poise.control.closed_loop_audit.rules:RULES",
)
"""Where the rooms keep their rules."""

REMEDIES = (
    "poise.doctor.remedies.documented:DOCUMENTED",
    "poise.preflight.init_audit.remedies:REMEDIES",
    "poise.recsys.recommender_audit.remedies:REMEDIES",
    "poise.loops.loop_audit.remedies:REMEDIES",
    "poise.sensitivity.retraining_audit.remedies:REMEDIES",
    "poise.causal.effect_audit.remedies:REMEDIES",
    "poise.continual.update_audit.remedies:REMEDIES",
    "poise.continual.evaluation.remedies:REMEDIES",
)
"""Where the rooms keep their documented remedies, by name."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All rules and remedies.

    Args:
        rule_sets: the doctor's causes and the rules of each audit.
        remedies: by name.
    """

    rule_sets: tuple[RuleSet, ...]
    remedies: dict[str, DocumentedRemedy]

    @property
    def ids(self) -> list[str]:
        """Ids of all rules, each once."""
        return list(dict.fromkeys(rule.id for rules in self.rule_sets for rule in rules))

    def rules(self, id: str) -> list[tuple[RuleSet, Rule[Any]]]:
        """Return the rules of one id, each with the set it belongs to.

        Args:
            id: of a rule; hyphens and underscores are equal.

        Raises:
            ValueError: if there is none; the nearest ids are offered.
        """
        key = spelled(id)
        found = [(rules, rule) for rules in self.rule_sets for rule in rules if rule.id == key]
        if not found:
            raise ValueError(f"rule {id!r} is unknown: {did_you_mean(key, self.ids)}")
        return found

    def remedy(self, name: str) -> DocumentedRemedy:
        """Return the remedy of this name; hyphens and underscores are equal.

        Raises:
            ValueError: if there is none; the nearest names are offered.
        """
        key = spelled(name)
        if key not in self.remedies:
            raise ValueError(f"remedy {name!r} is unknown: {did_you_mean(key, self.remedies)}")
        return self.remedies[key]

    def by_room(self, room: str) -> list[RuleSet]:
        """Return the rule sets of one room.

        Raises:
            ValueError: if no room of that name has rules.
        """
        found = [rules for rules in self.rule_sets if rules.room == room]
        if not found:
            rooms = dict.fromkeys(rules.room for rules in self.rule_sets)
            raise ValueError(f"room {room!r} has no rules: {did_you_mean(room, rooms)}")
        return found

    def by_family(self, family: str) -> list[tuple[RuleSet, Rule[Any]]]:
        """Return the rules of one family, each with the set it belongs to.

        Raises:
            ValueError: if there is no such family.
        """
        everything = [(rules, rule) for rules in self.rule_sets for rule in rules]
        found = [(rules, rule) for rules, rule in everything if rule.family == family]
        if not found:
            families = dict.fromkeys(rule.family for _, rule in everything)
            raise ValueError(f"family {family!r} is unknown: {did_you_mean(family, families)}")
        return found


def spelled(name: str) -> str:
    """Return a name as the catalogue writes it: in lower case, with underscores."""
    return name.strip().lower().replace("-", "_")


@cache
def catalogue() -> Catalogue:
    """Return the catalogue of this installation.

    Raises:
        ValueError: if two rooms document a remedy of one name.
    """
    remedies: dict[str, DocumentedRemedy] = {}
    for place in REMEDIES:
        more = _loaded(place)
        if twice := remedies.keys() & more.keys():
            raise ValueError(f"a remedy must be documented once, got {sorted(twice)} twice")
        remedies |= more
    return Catalogue(tuple(_loaded(place) for place in RULE_SETS), remedies)


def _loaded(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
