"""The rules of the audit of a recommender, one a file. A new rule is a new file and a new name here."""

from poise.recsys.recommender_audit.rules import (
    far_reaching_interaction,
    interaction_sensitivity,
    nondeterministic_training,
    row_order_sensitivity,
    seed_sensitivity,
    unequal_stability,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "recommender audit",
    "recsys",
    "`poise.recsys.audit_recommender`",
    (
        nondeterministic_training.RULE,
        seed_sensitivity.RULE,
        row_order_sensitivity.RULE,
        interaction_sensitivity.RULE,
        far_reaching_interaction.RULE,
        unequal_stability.RULE,
    ),
)

__all__ = ["RULES"]
