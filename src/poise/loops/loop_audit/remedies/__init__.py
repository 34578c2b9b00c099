"""What keeps a feedback loop from drifting, one a file."""

from poise.loops.loop_audit.remedies import draw_labels, more_human_rows
from poise.rules.documented_remedy import DocumentedRemedy

REMEDIES: dict[str, DocumentedRemedy] = {m.REMEDY.name: m.REMEDY for m in (draw_labels, more_human_rows)}
"""By name."""

__all__ = ["REMEDIES"]
