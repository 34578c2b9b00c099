"""The causes of instability that poise knows, one file each. A new one is one more file and one more line here."""

from poise.doctor.causes import (
    attention_logit_growth,
    backward_nonfinite,
    bad_batch,
    bf16_update_swallow,
    dead_units,
    double_softmax,
    eps_dominates,
    exploding_gradients,
    forward_nonfinite,
    fp16_overflow,
    label_problem,
    lr_too_high,
    lr_too_small,
    missing_zero_grad,
    mode_error,
    orphan_parameters,
    output_logit_divergence,
    schedule_jump,
    stale_second_moment,
    state_lost_on_resume,
    unscaled_inputs,
    vanishing_gradients,
)
from poise.doctor.causes.cause import Cause

CAUSES: dict[str, Cause] = {
    module.CAUSE.id: module.CAUSE
    for module in (
        attention_logit_growth,
        backward_nonfinite,
        bad_batch,
        bf16_update_swallow,
        dead_units,
        double_softmax,
        eps_dominates,
        exploding_gradients,
        forward_nonfinite,
        fp16_overflow,
        label_problem,
        lr_too_high,
        lr_too_small,
        missing_zero_grad,
        mode_error,
        orphan_parameters,
        output_logit_divergence,
        schedule_jump,
        stale_second_moment,
        state_lost_on_resume,
        unscaled_inputs,
        vanishing_gradients,
    )
}

__all__ = ["CAUSES", "Cause"]
