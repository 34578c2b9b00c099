"""The rules of the perturbation grid, one a file. A new rule is a new file and a new name here."""

from poise.preflight.perturbation_audit.rules import does_not_survive_perturbation
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "perturbation grid",
    "preflight",
    "`poise.preflight.perturbation_grid`",
    (does_not_survive_perturbation.RULE,),
)

__all__ = ["RULES"]
