"""Studies: the executable test of each paper's claims, and what came out."""

from poise.studies.registry import STUDIES, load_study
from poise.studies.study import (
    Budget,
    Claim,
    ClaimResult,
    ClaimVerdict,
    Measured,
    Measurement,
    Outcome,
    Paper,
    Progress,
    Study,
)

__all__ = [
    "STUDIES",
    "Budget",
    "Claim",
    "ClaimResult",
    "ClaimVerdict",
    "Measured",
    "Measurement",
    "Outcome",
    "Paper",
    "Progress",
    "Study",
    "load_study",
]
