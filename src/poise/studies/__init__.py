"""Studies: the executable test of each paper's claims, and what came out."""

from typing import TYPE_CHECKING

from poise._lazy import attach

if TYPE_CHECKING:
    from poise.studies.registry import STUDIES, load_study
    from poise.studies.results import RESULTS, read_results, record_result
    from poise.studies.runner import StudyListing, list_studies, run_study
    from poise.studies.study import (
        BUDGETS,
        CLAIM_VERDICTS,
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
    "BUDGETS",
    "CLAIM_VERDICTS",
    "RESULTS",
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
    "StudyListing",
    "list_studies",
    "load_study",
    "read_results",
    "record_result",
    "run_study",
]

attach(__name__)
