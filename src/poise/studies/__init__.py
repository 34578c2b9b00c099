"""Studies: the executable test of each paper's claims, and what came out."""

from typing import TYPE_CHECKING

from poise.tools.lazy_front import lazy_front

if TYPE_CHECKING:
    from poise.studies.kit.claims import CLAIM_VERDICTS, Claim, ClaimResult, Measured, claim
    from poise.studies.kit.results import RESULTS, read_results, record_result, seed_sets, settled_verdicts
    from poise.studies.kit.rules import ClaimVerdict, Condition, Rule
    from poise.studies.kit.runner import StudyListing, list_studies, run_study, run_study_twice
    from poise.studies.kit.seed_sets import SETTLED_VERDICTS, SettledVerdict
    from poise.studies.kit.study import BUDGETS, Budget, Outcome, Paper, Presentation, Progress, Study
    from poise.studies.registry import STUDIES, load_study

__all__ = [
    "BUDGETS",
    "CLAIM_VERDICTS",
    "RESULTS",
    "SETTLED_VERDICTS",
    "STUDIES",
    "Budget",
    "Claim",
    "ClaimResult",
    "ClaimVerdict",
    "Condition",
    "Measured",
    "Outcome",
    "Paper",
    "Presentation",
    "Progress",
    "Rule",
    "SettledVerdict",
    "Study",
    "StudyListing",
    "claim",
    "list_studies",
    "load_study",
    "read_results",
    "record_result",
    "run_study",
    "run_study_twice",
    "seed_sets",
    "settled_verdicts",
]

lazy_front(__name__)
