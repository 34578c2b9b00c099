"""The causes of instability that poise knows, one file each. A new one is one more file and one more line here."""

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
    "reinforcement learning",
    "undetermined",
)
"""Families of causes, in the order of listings."""

_IDS = (
    "attention_logit_growth",
    "backward_nonfinite",
    "bad_batch",
    "benign_catapult",
    "bf16_update_swallow",
    "bootstrap_divergence",
    "dead_units",
    "double_softmax",
    "eps_dominates",
    "eps_underflow",
    "exploding_gradients",
    "forward_nonfinite",
    "fp16_overflow",
    "label_problem",
    "loss_scaling",
    "lr_above_curvature",
    "lr_too_high",
    "lr_too_small",
    "missing_zero_grad",
    "mode_error",
    "norm_growth",
    "orphan_parameters",
    "output_logit_divergence",
    "schedule_jump",
    "softmax_collapse",
    "stale_second_moment",
    "state_lost_on_resume",
    "undetermined",
    "unscaled_inputs",
    "unscaled_targets",
    "vanishing_gradients",
    "warmup_too_short",
    "weight_decay_too_strong",
)

CAUSES: dict[str, Cause] = {id: import_module(f"poise.doctor.causes.{id}").CAUSE for id in _IDS}

RULES = RuleSet(
    "causes",
    "doctor",
    "`poise run`",
    tuple(CAUSES.values()),
    FAMILIES,
)

__all__ = ["CAUSES", "FAMILIES", "RULES", "Cause"]
