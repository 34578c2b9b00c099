"""The documentation of a rule or a remedy as text."""

from __future__ import annotations

from typing import Any

from poise.rules.catalogue import Catalogue, catalogue, spelled
from poise.rules.documented_remedy import KINDS, DocumentedRemedy
from poise.rules.rule import Rule
from poise.rules.rule_set import RuleSet
from poise.tools.nearest_name import did_you_mean


def explain(name: str) -> str:
    """Return the documentation of a rule (a cause, or a rule of an audit) or of a remedy in Markdown.

    Args:
        name: id of a rule, or name of a remedy; hyphens and underscores are equal.

    Raises:
        ValueError: if there is neither; the nearest names are offered.
    """
    known, key = catalogue(), spelled(name)
    if key in known.ids:
        return "\n---\n\n".join(explain_rule(known, rules, rule) for rules, rule in known.rules(key))
    if key in known.remedies:
        return explain_remedy(known, known.remedies[key])
    raise ValueError(f"{name!r} is neither a rule nor a remedy: {did_you_mean(key, [*known.ids, *known.remedies])}")


def explain_rule(known: Catalogue, rules: RuleSet, rule: Rule[Any]) -> str:
    """Return the documentation of one rule, with the titles of its remedies."""
    kind = "exact" if rule.exact else "statistical"
    parts = [
        f"# {rule.title}",
        f"`{rule.id}` · {rule.family} · {kind} · found by {rules.found_by}",
        (rule.doc or "").strip().partition("\n")[2].strip(),
    ]
    if rule.remedies:
        parts.append("## Remedies\n" + "\n".join(_remedy_line(known, spec) for spec in rule.remedies))
    if rule.further():
        parts.append(rule.further())
    return "\n\n".join(parts) + "\n"


def _remedy_line(known: Catalogue, spec: str) -> str:
    remedy = known.remedy(spec.partition("=")[0])
    call = f"`--remedy {spec}`" if remedy.kind == "live" else f"`{remedy.name}`"
    return f"- {call}: {remedy.title}"


def explain_remedy(known: Catalogue, remedy: DocumentedRemedy) -> str:
    """Return the documentation of one remedy, its code, and the rules that name it."""
    named_by = [rule.id for rules in known.rule_sets for rule in rules if remedy.name in rule.remedy_names]
    parts = [
        f"# {remedy.title}",
        f"`{remedy.name}` · {KINDS[remedy.kind]}",
        (remedy.doc or "").strip().partition("\n")[2].strip(),
        f"## The lines\n```{remedy.language}\n{remedy.code.rstrip()}\n```",
    ]
    if named_by:
        parts.append("## Named by\n" + ", ".join(f"`{id}`" for id in dict.fromkeys(named_by)))
    return "\n\n".join(parts) + "\n"
