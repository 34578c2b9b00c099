"""What the studies share: claims and the rules that decide them, runs over settings and seeds, data, networks, tables.

Light parts are handed on here; what needs torch, numpy or plotly is imported from its own file.
"""

from poise.studies.kit.claims import Claim, ClaimResult, Measured, claim
from poise.studies.kit.rules import (
    Rule,
    above,
    all_or_none,
    at_least,
    at_most,
    below,
    between,
    beyond,
    equal_to,
    holds_in,
    where,
    within,
)
from poise.studies.kit.study import Budget, Outcome, Paper, Presentation, Progress, Study

__all__ = [
    "Budget",
    "Claim",
    "ClaimResult",
    "Measured",
    "Outcome",
    "Paper",
    "Presentation",
    "Progress",
    "Rule",
    "Study",
    "above",
    "all_or_none",
    "at_least",
    "at_most",
    "below",
    "between",
    "beyond",
    "claim",
    "equal_to",
    "holds_in",
    "where",
    "within",
]
