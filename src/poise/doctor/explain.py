"""The list of causes as text."""

from __future__ import annotations

from poise.doctor.causes import RULES
from poise.rules.contents import rule_groups
from poise.rules.explain import explain as explain


def list_causes() -> str:
    """Return all causes in Markdown, by family: id and what it is."""
    parts = []
    for group in rule_groups(RULES):
        lines = [f"- `{id}`: {title}" for id, title in group.entries]
        parts.append("\n".join([f"## {group.heading}", *lines]))
    return "\n\n".join(parts) + "\n"
