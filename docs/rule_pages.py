"""Where the page of each rule is: one folder for the causes, one for each audit."""

from __future__ import annotations

from typing import Any

from poise.doctor.causes import RULES as CAUSES
from poise.rules import Rule, RuleSet


def rule_path(rules: RuleSet, rule: Rule[Any]) -> str:
    """Return the path of a rule's page, from the root of the site's sources."""
    folder = "causes" if rules is CAUSES else f"audits/{rules.name.replace(' ', '_')}"
    return f"{folder}/{rule.id}.md"
