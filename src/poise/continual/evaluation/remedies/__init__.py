"""Remedies of the rules over continual evaluation, one file each."""

from poise.continual.evaluation.remedies import renumber_labels, spectral_penalty
from poise.rules.documented_remedy import DocumentedRemedy

REMEDIES: dict[str, DocumentedRemedy] = {m.REMEDY.name: m.REMEDY for m in (spectral_penalty, renumber_labels)}
"""By name."""

__all__ = ["REMEDIES"]
