"""The rules of the audit of a deployed classifier, one a file; a new rule is a new file and a new name here."""

from poise.rules.rule_set import RuleSet
from poise.shift.deployment_audit.rules import (
    concept_shift,
    input_drift,
    low_effective_sample,
    miscalibrated_scores,
    performance_drop,
    unsupported_rows,
)

RULES = RuleSet(
    "deployment audit",
    "shift",
    "`poise.shift.audit_deployment`",
    (
        performance_drop.RULE,
        concept_shift.RULE,
        unsupported_rows.RULE,
        low_effective_sample.RULE,
        input_drift.RULE,
        miscalibrated_scores.RULE,
    ),
)

__all__ = ["RULES"]
