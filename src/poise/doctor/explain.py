"""What poise knows about each cause, as text to read."""

from __future__ import annotations

from poise.doctor.causes import CAUSES, Cause
from poise.doctor.diagnose import find_cause


def explain(name: str) -> str:
    """Return the documentation of a cause in Markdown.

    Args:
        name: id of the cause; hyphens and underscores are equal.

    Raises:
        ValueError: if there is none of that name; the nearest ids are offered.
    """
    cause = find_cause(name)
    parts = [f"# {cause.title}", f"`{cause.id}` · {_kind(cause)}", (cause.doc or "").strip()]
    if cause.remedies:
        parts.append("## Remedies that poise can try\n" + "\n".join(f"- `--remedy {spec}`" for spec in cause.remedies))
    if cause.leads_to:
        parts.append("## What it explains away\n" + ", ".join(f"`{other}`" for other in cause.leads_to))
    return "\n\n".join(parts) + "\n"


def list_causes() -> str:
    """Return a Markdown table of all causes: id, what it is, whether its rule is exact, remedies."""
    rows = [
        f"| `{cause.id}` | {cause.title} | {_kind(cause)} | {', '.join(cause.remedies) or '-'} |"
        for cause in CAUSES.values()
    ]
    return "\n".join(["| cause | what it is | rule | remedies |", "|---|---|---|---|", *rows]) + "\n"


def _kind(cause: Cause) -> str:
    return "exact" if cause.exact else "statistical"
