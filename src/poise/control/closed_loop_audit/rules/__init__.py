"""What the audit of a closed loop can find, one rule a file. A new rule is one more file and one more name here."""

from poise.control.closed_loop_audit.rules import (
    box_not_attracted,
    derivative_error,
    goal_not_an_equilibrium,
    input_saturation,
    left_training_hull,
    model_stable_plant_not,
    small_margin,
    transient_growth,
    unstable_at_goal,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "closed-loop audit",
    "control",
    "`poise.control.audit_closed_loop`",
    (
        unstable_at_goal.RULE,
        goal_not_an_equilibrium.RULE,
        small_margin.RULE,
        transient_growth.RULE,
        box_not_attracted.RULE,
        input_saturation.RULE,
        model_stable_plant_not.RULE,
        derivative_error.RULE,
        left_training_hull.RULE,
    ),
)

__all__ = ["RULES"]
