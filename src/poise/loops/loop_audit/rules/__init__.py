"""The rules of the audit of a feedback loop, one a file. A new rule is a new file and a new name here."""

from poise.loops.loop_audit.rules import bias_amplification, lost_class, no_human_rows, shift_miscalibration
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "loop audit",
    "loops",
    "`poise.loops.audit_loop`",
    (bias_amplification.RULE, lost_class.RULE, shift_miscalibration.RULE, no_human_rows.RULE),
)

__all__ = ["RULES"]
