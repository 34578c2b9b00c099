"""The rules of the audit of retraining, one a file. A new rule is a new file and a new name here."""

from poise.rules.rule_set import RuleSet
from poise.sensitivity.retraining_audit.rules import (
    data_churn,
    influential_rows,
    nondeterministic_training,
    row_order_churn,
    seed_churn,
)

RULES = RuleSet(
    "retraining audit",
    "sensitivity",
    "`poise.sensitivity.audit_retraining`",
    (nondeterministic_training.RULE, seed_churn.RULE, row_order_churn.RULE, data_churn.RULE, influential_rows.RULE),
)

__all__ = ["RULES"]
