"""What a perturbation grid can find, one rule a file. A new rule is one more file and one more name here."""

from poise.preflight.perturbation_audit.rules import does_not_survive_perturbation
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "perturbation grid",
    "preflight",
    "`poise.preflight.perturbation_grid`",
    (does_not_survive_perturbation.RULE,),
)

__all__ = ["RULES"]
