"""The clinic: small training scripts with known faults, and healthy ones, to judge tools that watch training."""

from poise.studies.clinic.corpus import Case, cases, controls, export, faults

__all__ = ["Case", "cases", "controls", "export", "faults"]
