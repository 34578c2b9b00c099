"""The rules over the scores of continual evaluation, one a file; a new rule is a new file and a new name here."""

from poise.continual.evaluation.rules import hidden_drop, label_offset, loss_of_plasticity
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "continual evaluation",
    "continual",
    "`poise.continual.evaluation_report`",
    (label_offset.RULE, loss_of_plasticity.RULE, hidden_drop.RULE),
)

__all__ = ["RULES"]
