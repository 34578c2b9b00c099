"""The rules of the audit of an update, one a file; a new rule is a new file and a new name here."""

from poise.continual.update_audit.rules import (
    averaging_lag,
    gradient_conflict,
    head_initialisation,
    hidden_plasticity,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "update audit",
    "continual",
    "`poise.continual.audit_update`",
    (
        head_initialisation.RULE,
        hidden_plasticity.RULE,
        gradient_conflict.RULE,
        averaging_lag.RULE,
    ),
)

__all__ = ["RULES"]
