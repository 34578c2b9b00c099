"""The evidence of a finding as a table."""

from __future__ import annotations

from collections.abc import Sequence

from poise.report.finding import Evidence
from poise.report.table import Table


def evidence_table(evidence: Sequence[Evidence]) -> Table:
    """Return the evidence of a finding as a table without its empty columns."""
    names = ("signal", "value", "threshold", "baseline", "step")
    kept = [name for name in names if any(getattr(item, name) is not None for item in evidence)]
    rows = [[getattr(item, name) for name in kept] for item in evidence]
    return Table("Evidence", [name.capitalize() for name in kept], rows)
