"""What the audit of an effect can find, one rule a file. A new rule is one more file and one more name here."""

from poise.causal.effect_audit.rules import (
    constant_effect_predicts_better,
    estimate_depends_on_learner,
    estimate_depends_on_seed,
    poor_overlap,
    sign_hangs_on_few_rows,
    significance_hangs_on_few_rows,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "effect audit",
    "causal",
    "`poise.causal.audit_effect`",
    (
        sign_hangs_on_few_rows.RULE,
        significance_hangs_on_few_rows.RULE,
        estimate_depends_on_seed.RULE,
        estimate_depends_on_learner.RULE,
        poor_overlap.RULE,
        constant_effect_predicts_better.RULE,
    ),
)

__all__ = ["RULES"]
