"""The causes of instability that poise can find, one file each. A new cause is a new file and a new line here."""

from importlib import import_module

from poise.doctor.causes.cause import Cause
from poise.rules.rule_set import RuleSet

FAMILIES = (
    "learning rate",
    "optimizer",
    "gradients",
    "activations and logits",
    "number formats",
    "data",
    "script",
    "contract",
    "representations",
    "reinforcement learning",
    "undetermined",
)
"""Families of causes, in the order of listings."""

_IDS = (
    "attention_entropy_collapse",
    "attention_logit_growth",
    "backward_nonfinite",
    "bad_batch",
    "benign_catapult",
    "bf16_update_lost",
    "bootstrap_divergence",
    "clip_saturated",
    "dead_units",
    "discriminator_wins",
    "double_softmax",
    "eps_dominates",
    "eps_underflow",
    "exploding_gradients",
    "forward_nonfinite",
    "fp16_overflow",
    "label_problem",
    "learned_std_runaway",
    "loss_scaling",
    "lowprec_state",
    "lr_above_curvature",
    "lr_too_high",
    "lr_too_small",
    "missing_zero_grad",
    "mode_error",
    "norm_gain_collapse",
    "norm_growth",
    "orphan_parameters",
    "output_logit_divergence",
    "policy_collapse",
    "posterior_collapse",
    "postnorm_gradient_imbalance",
    "repeated_tokens",
    "representation_collapse",
    "residual_explosion",
    "saturation",
    "schedule_jump",
    "small_batch_bn",
    "softmax_collapse",
    "stale_second_moment",
    "state_lost_on_resume",
    "target_not_detached",
    "undetermined",
    "unscaled_inputs",
    "vanishing_gradients",
    "warmup_too_short",
    "weight_decay_too_strong",
)

_CONTRACTS = (
    "accumulation_not_divided",
    "batch_as_time",
    "clip_before_unscale",
    "ctc_target_too_long",
    "deviation_of_one_value",
    "dropout_in_evaluation",
    "fully_masked_softmax",
    "gradients_lost",
    "kl_div_input",
    "loss_broadcast",
    "lr_lost_on_resume",
    "nll_input",
    "norm_over_batch",
    "optimizer_recreated",
    "partial_load",
    "requires_grad_in_vain",
    "schedule_per_batch",
    "schedule_steps_missing",
    "sigmoid_twice",
    "softmax_over_batch",
    "sum_reduction",
    "target_out_of_range",
    "targets_ignored",
    "unmixed_batches",
    "unreachable_target",
    "unregistered_layers",
    "unscaled_targets",
    "updates_undone",
)

CAUSES: dict[str, Cause] = {id: import_module(f"poise.doctor.causes.{id}").CAUSE for id in _IDS}
CAUSES |= {id: import_module(f"poise.doctor.causes.contract.{id}").CAUSE for id in _CONTRACTS}

RULES = RuleSet(
    "causes",
    "doctor",
    "`poise run`",
    tuple(CAUSES.values()),
    FAMILIES,
)

__all__ = ["CAUSES", "FAMILIES", "RULES", "Cause"]
