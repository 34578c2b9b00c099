"""Remedies of the audit of an effect, one file each."""

from poise.causal.effect_audit.remedies import median_over_seeds, overlap_weights
from poise.rules.documented_remedy import DocumentedRemedy

REMEDIES: dict[str, DocumentedRemedy] = {
    module.REMEDY.name: module.REMEDY for module in (overlap_weights, median_over_seeds)
}
"""By name."""

__all__ = ["REMEDIES"]
