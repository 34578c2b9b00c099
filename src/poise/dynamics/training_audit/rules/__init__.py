"""What the audit of a training run can find, one rule a file. A new rule is one more file and one more name here."""

from poise.dynamics.training_audit.rules import (
    above_edge_of_stability,
    at_edge_of_stability,
    sharpness_uncertain,
    unstable_with_batch_noise,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "training audit",
    "dynamics",
    "`poise.dynamics.audit`",
    (
        above_edge_of_stability.RULE,
        at_edge_of_stability.RULE,
        unstable_with_batch_noise.RULE,
        sharpness_uncertain.RULE,
    ),
)

__all__ = ["RULES"]
