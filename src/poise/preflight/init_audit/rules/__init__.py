"""The rules of the audit before the first step, one a file; a new rule is a new file and a new name here."""

from poise.preflight.init_audit.rules import (
    attention_logit_growth,
    backward_nonfinite,
    cancelled_factor,
    dead_units,
    degenerate_norm,
    eps_dominates,
    exploding_gradients,
    forward_nonfinite,
    gradient_underflow,
    hidden_state_gain,
    indistinguishable_inputs,
    large_sublayer,
    lr_above_curvature,
    orphan_parameters,
    shortcut_gain,
    signal_decay,
    signal_growth,
    small_positions,
    small_residual_stream,
    vanishing_gradients,
)
from poise.rules.rule_set import RuleSet

RULES = RuleSet(
    "init audit",
    "preflight",
    "`poise.preflight.audit_init`",
    (
        forward_nonfinite.RULE,
        backward_nonfinite.RULE,
        signal_growth.RULE,
        signal_decay.RULE,
        exploding_gradients.RULE,
        vanishing_gradients.RULE,
        gradient_underflow.RULE,
        shortcut_gain.RULE,
        small_residual_stream.RULE,
        small_positions.RULE,
        large_sublayer.RULE,
        cancelled_factor.RULE,
        degenerate_norm.RULE,
        attention_logit_growth.RULE,
        dead_units.RULE,
        indistinguishable_inputs.RULE,
        hidden_state_gain.RULE,
        lr_above_curvature.RULE,
        eps_dominates.RULE,
        orphan_parameters.RULE,
    ),
)

__all__ = ["RULES"]
