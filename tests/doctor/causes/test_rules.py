"""The limits of each rule: cases close to a cause that are none, and the sentences of the findings."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.doctor.causes import CAUSES
from poise.doctor.causes.reading import (
    align,
    confidence,
    first_crossing,
    first_run,
    listing,
    number,
    own_baseline,
)
from poise.doctor.diagnose import diagnose
from poise.doctor.events import LossEvent
from poise.report.finding import Finding
from poise.store import Event, Record, Series

from .synthetic import ATTENTION, FAULTS, WEIGHTS, Run, diverge, healthy, make_low_precision, set_optimizer, sick


def find(cause: str, run: Run | Record) -> list[Finding]:
    return CAUSES[cause].find(run if isinstance(run, Record) else run.record())


def only(cause: str, run: Run | Record) -> Finding:
    (finding,) = find(cause, run)
    return finding


# ---- parts


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_confidence_grows_with_the_margin(value, threshold):
    assert confidence(threshold, threshold) == pytest.approx(0.6, abs=0.01)
    assert confidence(2 * value, threshold) >= confidence(value, threshold)
    assert 0 < confidence(value, threshold) <= 0.99
    assert confidence(np.inf, threshold) == 0.99


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_first_run_is_the_end_of_the_first_streak(mask, length):
    ends = [i for i in range(len(mask)) if i + 1 >= length and all(mask[i - length + 1 : i + 1])]
    assert first_run(np.array(mask, dtype=bool), length) == (ends[0] if ends else None)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_baseline_is_the_median_of_the_first_ten_before(values):
    expected = [np.median(values[: min(max(i, 1), 10)]) for i in range(len(values))]
    np.testing.assert_allclose(own_baseline(np.array(values)), expected)


def test_align_carries_the_last_value_forward():
    series = Series(np.array([2, 5]), np.array([1.0, 3.0]))
    np.testing.assert_array_equal(align(series, np.array([1, 2, 4, 5, 9])), [np.nan, 1, 1, 3, 3])


def test_first_crossing_names_the_layers_of_that_step_worst_first():
    steps = np.arange(3)
    layers = {k: Series(steps, np.array(v)) for k, v in {"a": [0.0, 2, 9], "b": [0.0, 5, 0], "c": [0.0, 0, 9]}.items()}
    hit = first_crossing(layers, lambda s: s.values > 1)
    assert (hit.step, hit.where) == (1, ("b", "a"))


@pytest.mark.parametrize(
    ("value", "text"), [(571.3, "571"), (0.0412, "0.0412"), (12345.6, "12,346"), (1e-9, "1e-9"), (np.nan, "NaN")]
)
def test_numbers_in_sentences(value, text):
    assert number(value) == text


def test_listing_is_short():
    assert listing(list("abcde")) == "a, b, c and 2 more"


@pytest.mark.parametrize("exact_first", [False, True])
def test_events_are_found_once_in_what_all_causes_read(monkeypatch, exact_first):
    from poise.doctor import events

    views = []
    real = events._find_events

    def counted(view):
        views.append(view)
        return real(view)

    monkeypatch.setattr(events, "_find_events", counted)
    record = healthy().record()
    causes = sorted(CAUSES.values(), key=lambda cause: cause.exact, reverse=exact_first)
    for cause in causes:
        cause.find(record)
    assert len(views) == 1


def test_an_event_ends_the_sentence_and_decides_how_bad_it_is():
    cause = CAUSES["exploding_gradients"]
    event = LossEvent("divergence", 7, 9, 8.0, 1.0)
    with_event = cause.finding("info", 0.5, "It grew.", detected=9, event=event, severity_with_event="error")
    assert with_event.summary == "It grew; the loss diverged from 1 to 8 from step 7."
    assert (with_event.severity, with_event.event_step) == ("error", 7)
    without = cause.finding("info", 0.5, "It grew.", detected=9, severity_with_event="error")
    assert (without.summary, without.severity, without.event_step) == ("It grew.", "info", None)
    step = cause.finding("warning", 0.5, "It grew.", detected=9, event=7)
    assert (step.summary, step.severity, step.event_step) == ("It grew.", "warning", 7)


# ---- attention


def test_the_sentence_names_layer_numbers_and_collapse():
    text = only("attention_logit_growth", sick("attention_logit_growth", onset=60, strength=1.0)).summary
    assert text.startswith("Attention logits of blocks.1.attn grew from")
    assert "attention collapsed onto single tokens" in text


def test_attention_logits_that_were_always_large_have_not_grown():
    run = healthy()
    run.change(f"attention_logit_max[{ATTENTION[0]}]", 0, 90.0)
    assert find("attention_logit_growth", run) == []


def test_a_forecast_is_made_while_there_is_time():
    run = healthy()
    run.change(f"attention_logit_max[{ATTENTION[0]}]", 60, lambda s: 10 * np.exp(0.02 * (s - 60)))
    finding = only("attention_logit_growth", run)
    assert finding.severity == "warning"
    # 10 exp(0.02 (t - 60)) = 1e4 at t = 60 + ln(1000) / 0.02 = 405, were it not for the flat part in the fit.
    assert "they reach 10000, where runs diverge, near step" in finding.summary


@pytest.mark.parametrize(
    ("values", "forecast"),
    [
        (lambda s: 10 * np.exp(0.02 * s), True),
        (lambda s: np.minimum(10 * np.exp(0.03833 * s), 9900.0), False),  # the fitted line crossed before the end
        (lambda s: np.where(s < 190, 10 * np.exp(0.0386 * s), 9000.0), False),  # they have been there
    ],
)
def test_a_forecast_is_of_the_future(values, forecast):
    run = healthy(every=1)
    run.change(f"attention_logit_max[{ATTENTION[0]}]", 40, values)
    finding = only("attention_logit_growth", run)
    match = re.search(r"near step (\d+)", finding.summary)
    assert bool(match) is forecast, finding.summary
    if match:
        assert int(match[1]) > run.record().last_step


def test_confident_logits_grow_apart_but_not_away():
    run = healthy()
    run.change("logit_lse", 20, lambda s: 3 + 0.2 * s)
    run.change("logit_mean", 20, lambda s: -0.1 * s)
    assert find("output_logit_divergence", run) == []


# ---- optimizer


def test_large_adam_ratios_without_harm_are_no_finding():
    run = healthy()
    run.burst(60)
    for name in WEIGHTS:
        run.change(f"adam_rms[{name}]", 60, 6.0)
    assert find("stale_second_moment", run) == []


def test_a_hard_batch_with_a_large_gradient_is_not_a_stale_moment():
    run = healthy()
    run.burst(60)
    for name in WEIGHTS:
        steps, rms = run.signals[f"adam_rms[{name}]"]
        run.put(f"adam_rms[{name}]", steps, np.where(steps == 60, 6.0, rms))
    loss = run.values("loss")
    loss[60] += 5  # and back at once: the weights are fine
    run.put("loss", run.all_steps, loss)
    assert find("stale_second_moment", run) == []


def test_small_gradients_of_a_converged_run_or_a_bias_are_no_fault_of_eps():
    run = healthy()
    run.change("loss", 80, 0.01)
    run.change(f"adam_eps_shrink[{WEIGHTS[0]}]", 95, 0.2)
    run.put("adam_eps_shrink[keys.bias]", run.sampled, 0.1)
    assert find("eps_dominates", run) == []


def resumed(
    held: bool,
    rewarmed: bool = False,
    restored: bool = False,
    loss_jumps: bool = False,
    share: float = 1.0,
    **before: float,
) -> Run:
    run = healthy()
    run.events = [e for e in run.events if e.kind != "first_step"]
    facts = {"state_empty": True, "adaptive": True, "stateful": True, "loaded_share": share, **before}
    run.event(0, "first_step", timeline="", **facts)
    run.event(0, "torch_load", has_optimizer_state=held)
    run.event(0, "load_state_dict", what="model")
    if restored:
        run.event(0, "load_state_dict", what="optimizer")
    if rewarmed:
        run.change("lr", 0, lambda s: 1e-3 * np.minimum((s + 1) / 100, 1))
    if loss_jumps:
        run.put("loss", run.all_steps, np.where(run.all_steps < 1, 0.3, 0.9))
    return run


def test_resuming_well_and_fine_tuning_are_no_lost_state():
    assert find("state_lost_on_resume", resumed(held=True, restored=True)) == []
    assert find("state_lost_on_resume", resumed(held=True, rewarmed=True)) == []
    assert find("state_lost_on_resume", resumed(held=False)) == []
    assert find("state_lost_on_resume", healthy()) == []


def test_weights_copied_between_modules_are_no_resume():
    # A target network, a momentum encoder or a teacher is loaded: not what the optimizer trains.
    assert find("state_lost_on_resume", resumed(held=True, share=0.0)) == []
    # Pre-trained weights that nothing in this script has trained may make the loss rise at first.
    assert find("state_lost_on_resume", resumed(held=False, loss_jumps=True)) == []
    # Nor is it a resume where the first losses are not those at which the earlier optimizer stopped.
    other_task = resumed(held=False, loss_jumps=True, earlier_steps=100, earlier_loss=0.05)
    assert find("state_lost_on_resume", other_task) == []


def test_a_loss_that_jumps_on_resuming_betrays_a_lost_state_without_a_checkpoint():
    resumed_here = resumed(held=False, loss_jumps=True, earlier_steps=100, earlier_loss=0.3)
    finding = only("state_lost_on_resume", resumed_here)
    assert (finding.severity, finding.onset_step, finding.detected_step) == ("warning", 0, 20)
    assert "rose from 0.3 to 0.9" in finding.summary


def test_a_second_optimizer_knows_what_was_loaded_before_its_first_step():
    run = healthy()
    run.events = [e for e in run.events if e.kind != "first_step"]
    run.event(0, "first_step", state_empty=True, adaptive=True, stateful=True, run_step=100, loaded_share=1.0)
    run.event(100, "torch_load", has_optimizer_state=True)
    run.event(100, "load_state_dict", what="model")
    assert only("state_lost_on_resume", run).detected_step == 100
    run.event(150, "load_state_dict", what="optimizer")  # later: of no help
    assert len(find("state_lost_on_resume", run)) == 1


# ---- learning rate


def schedule(values, steps=200) -> Run:
    run = healthy(steps)
    run.put("lr", run.all_steps, values(run.all_steps))
    return run


@pytest.mark.parametrize(
    "values",
    [
        lambda t: 0.1 * 0.1 ** (t // 70),  # step decay
        lambda t: 1e-3 * 0.5 * (1 + np.cos(np.pi * t / 200)),  # cosine to zero
        lambda t: 1e-3 * np.minimum((t + 1) / 50, 1),  # linear warm-up
        lambda t: 1e-3 * 0.5 * (1 + np.cos(np.pi * (t % 50) / 50)),  # warm restarts
        lambda t: 1e-3 * (1 - t / 200),  # linear decay
        lambda t: np.where(t < 100, 1e-3, 5e-3),  # a jump that does no harm
    ],
)
def test_ordinary_schedules_are_no_jumps_and_not_too_small(values):
    assert find("schedule_jump", schedule(values)) == []
    assert find("lr_too_small", schedule(values)) == []


def test_a_rise_during_warm_up_is_no_jump_even_if_the_loss_suffers():
    run = schedule(lambda t: 1e-5 * 2.5 ** np.minimum(t, 8))
    diverge(run, 10)
    assert find("schedule_jump", run) == []


def test_an_epoch_schedule_stepped_per_batch_freezes_the_run():
    run = schedule(lambda t: 0.1 * 0.1 ** (t // 10))
    run.change("loss", 30, 1.5)
    finding = only("schedule_jump", run)
    assert finding.severity == "error"
    assert "Is a scheduler made for epochs stepped once a batch?" in finding.summary


def test_large_updates_of_a_run_that_learns_are_no_fault():
    run = healthy()
    run.change("update_ratio", 0, 0.3)
    assert find("lr_too_high", run) == []


def test_a_loss_that_rises_under_small_updates_has_another_cause():
    run = healthy()
    diverge(run, 80)
    assert find("lr_too_high", run) == []


def test_gradients_stand_in_for_updates_that_were_not_recorded():
    run = healthy()
    del run.signals["update_ratio"]
    diverge(run, 80)
    run.change("grad_norm", 80, lambda s: 3 * np.exp(0.3 * (s - 79)))
    assert only("lr_too_high", run).evidence[0].signal == "grad_norm"


def test_a_nan_out_of_a_calm_loss_is_not_the_learning_rate():
    run = healthy()
    run.change("update_ratio", 0, 0.05)
    run.change("loss", 70, np.nan)
    assert find("lr_too_high", run) == []


def test_a_net_that_the_first_steps_broke_is_stuck():
    run = healthy()
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.3, 0.01))
    run.change("update_ratio", 0, lambda s: np.where(s < 8, 0.6, 1e-4))
    finding = only("lr_too_high", run)
    assert "the loss stalled" in finding.summary


def test_a_flat_loss_without_gradients_is_not_a_small_learning_rate():
    run = healthy()
    FAULTS["lr_too_small"](run, 0, 0.5)
    run.change("grad_norm", 0, 1e-7)
    assert find("lr_too_small", run) == []


# ---- numbers


def test_an_infinity_that_harms_nothing_is_only_worth_knowing():
    run = healthy()
    run.event(50, "nonfinite_forward", module="mask", op="log", input_min=0.0, input_max=1.0)
    finding = only("forward_nonfinite", run)
    assert (finding.severity, finding.where, finding.event_step) == ("info", ("mask",), None)


def test_a_module_with_huge_inputs_is_less_probable_as_the_origin():
    run = healthy()
    run.event(50, "nonfinite_forward", module="head", op="linear", input_min=-1e30, input_max=1e30)
    assert only("forward_nonfinite", run).probability < 0.7


def test_inputs_that_are_not_finite_are_a_bad_batch_and_no_fault_of_the_forward_pass():
    run = healthy()
    run.event(50, "nonfinite_forward", module="", op="the input batch")
    run.change("loss", 50, np.nan)
    assert find("forward_nonfinite", run) == []
    assert only("bad_batch", run).severity == "error"


def test_the_gradient_scaler_may_look_for_its_scale():
    run = healthy()
    run.put("amp_skipped", run.all_steps, (run.all_steps < 6).astype(float))
    run.put("amp_scale", run.all_steps, np.maximum(65536 * 0.5**run.all_steps, 1024))
    run.signals["grad_norm"][1].flags.writeable = True
    norms = run.values("grad_norm")
    norms[:6] = np.inf
    run.put("grad_norm", run.all_steps, norms)
    assert find("fp16_overflow", run) == []
    assert find("backward_nonfinite", run) == []


def test_a_gradient_that_is_not_finite_behind_a_nan_loss_is_no_finding_of_its_own():
    run = healthy()
    run.change("loss", 50, np.nan)
    run.change("grad_norm", 50, np.nan)
    assert find("backward_nonfinite", run) == []


def test_without_an_event_the_parameters_are_named_from_the_end():
    run = healthy(every=1)
    for name in WEIGHTS[:3]:
        run.change(f"grad_norm[{name}]", 50, np.inf)
    run.change("grad_norm", 50, np.inf)
    assert only("backward_nonfinite", run).where == (WEIGHTS[2], WEIGHTS[1], WEIGHTS[0])


def test_large_activations_matter_in_float16_only():
    run = healthy()
    run.change("act_absmax[relu]", 80, 4e4)
    assert find("fp16_overflow", run) == []
    make_low_precision(run, "bfloat16")
    assert find("fp16_overflow", run) == []
    make_low_precision(run, "float16")
    assert only("fp16_overflow", run).where == ("relu",)


def test_updates_may_vanish_at_the_end_of_a_decay():
    run = healthy()
    make_low_precision(run, "bfloat16")
    run.put("lr", run.all_steps, 1e-3 * (1 - run.all_steps / 200) ** 2)
    run.put(f"update_lost[{WEIGHTS[0]}]", run.sampled, np.where(run.sampled > 150, 0.9, 0.05))
    assert find("bf16_update_lost", run) == []


# ---- data


def test_unscaled_inputs_that_do_no_harm_are_only_worth_knowing():
    run = healthy()
    run.change("input_std", 0, 70.0)
    assert only("unscaled_inputs", run).severity == "info"


def test_small_inputs_count_too():
    run = healthy()
    run.change("input_std", 0, 1e-3)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.3, 0.01))
    assert only("unscaled_inputs", run).severity == "warning"


def test_random_labels_leave_the_loss_at_their_entropy():
    run = healthy(300)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.29, 0.02))
    run.put("target_relation", np.array([10, 40]), [1.5, 0.4])
    finding = only("label_problem", run)
    assert (finding.severity, finding.onset_step) == ("error", 0)
    run.put("target_relation", np.array([10]), [12.0])  # they can be predicted: the model is at fault
    assert find("label_problem", run) == []


def test_targets_that_nothing_predicts_but_the_model_are_no_fault():
    run = healthy(300)
    run.put("target_relation", np.array([10, 40]), [1.5, 0.4])
    assert find("label_problem", run) == []


def test_a_loss_at_that_of_a_guess_is_no_proof_of_wrong_labels():
    run = healthy(300)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.29, 0.02))
    assert find("label_problem", run) == []


def test_weights_that_break_lose_purity_as_well():
    run = healthy()
    for name in ("label_agreement", "label_purity"):
        run.change(name, 0, lambda s: np.where(s < 100, 0.9, 0.1))
    assert find("label_problem", run) == []


def test_labels_that_change_explain_the_gradients_that_jump():
    run = healthy()
    run.change("loss", 100, lambda t: run.noisy(t, 9.0, 0.02))
    run.change("grad_norm", 100, lambda t: run.noisy(t, 40.0, 0.02))
    run.change("update_ratio", 0, 1e-3)
    run.change("label_agreement", 100, 0.02)
    run.change("label_purity", 100, 0.9)
    run.burst(100)
    found = diagnose(run.record())
    assert {"label_problem", "exploding_gradients"} <= {f.cause for f in found}
    assert [f.cause for f in found if f.severity != "info"] == ["label_problem"]


@pytest.mark.parametrize(("peak", "found"), [(3e-3, 1), (3e-4, 0)])
def test_weights_are_forgotten_by_the_mean_of_a_schedule_that_begins_near_zero(peak, found):
    run = healthy(300)
    FAULTS["weight_decay_too_strong"](run, 0, 0.5)
    set_optimizer(run, "AdamW", weight_decay=10.0)
    run.put("lr", run.all_steps, peak * np.minimum(1, (run.all_steps + 1) / 60))
    assert len(find("weight_decay_too_strong", run)) == found


@pytest.mark.parametrize(("share", "severity"), [(0.97, "warning"), (1.0, "error")])
def test_ignored_targets(share, severity):
    run = healthy()
    run.change("label_ignored", 50, share)
    assert only("label_problem", run).severity == severity


# ---- script and architecture


def test_gradient_accumulation_is_no_missing_reset():
    run = healthy()
    run.put("backwards", run.all_steps, 4.0)
    assert find("missing_zero_grad", run) == []


@pytest.mark.parametrize(
    ("payload", "severity"),
    [
        ({"replaced": [WEIGHTS[5]]}, "error"),
        ({"unoptimized": [WEIGHTS[5]]}, "error"),
        ({"unoptimized": WEIGHTS[:5]}, "warning"),  # most of the model: frozen on purpose, probably
        ({"no_gradient": WEIGHTS[:2]}, "warning"),
        ({"no_gradient": ["mask_token"]}, "info"),
    ],
)
def test_orphans_by_kind_and_share(payload, severity):
    run = healthy()
    run.event(10, "orphans", **payload)
    assert only("orphan_parameters", run).severity == severity


def test_a_frozen_batch_norm_is_only_worth_knowing():
    run = healthy()
    run.change("eval_mode", 0, 0.5)
    assert only("mode_error", run).severity == "info"


def test_evaluating_in_training_mode_is_a_warning():
    run = healthy()
    run.event(40, "eval_in_train_mode", modules=["bn1", "drop"])
    assert only("mode_error", run).where == ("bn1", "drop")


@pytest.mark.parametrize(("share", "severity"), [(0.7, "info"), (0.93, "warning"), (0.99, "error")])
def test_dead_units_by_share(share, severity):
    run = healthy()
    run.change("dead_units[relu]", 50, share)
    assert only("dead_units", run).severity == severity


def test_gradients_vanish_over_depth_in_the_order_of_the_forward_pass():
    run = healthy()
    FAULTS["vanishing_gradients"](run, 0, 1.0)
    assert only("vanishing_gradients", run).where == (WEIGHTS[0],)
    reversed_order = [
        Event(e.step, e.kind, e.payload | {"order": WEIGHTS[::-1]}) if e.kind == "model" else e for e in run.events
    ]
    record = Record.from_arrays(run.signals, reversed_order)
    assert find("vanishing_gradients", record) == []
    assert only("exploding_gradients", record).where == (WEIGHTS[5],)


def test_one_layer_with_a_small_gradient_is_no_vanishing():
    run = healthy()
    run.put(f"grad_norm[{WEIGHTS[1]}]", run.sampled, 1e-7)
    assert find("vanishing_gradients", run) == []


def test_a_jump_of_the_gradient_needs_harm_and_small_updates_before():
    run = healthy()
    run.change("grad_norm", 80, lambda s: np.where(s == 80, 100.0, 0.7))
    assert find("exploding_gradients", run) == []
    diverge(run, 81)
    assert only("exploding_gradients", run).onset_step == 80
    run.change("update_ratio", 0, 0.1)
    assert find("exploding_gradients", run) == []


def test_clipping_takes_the_edge_off_exploding_gradients():
    run = healthy()
    FAULTS["exploding_gradients"](run, 0, 0.5)
    run.put("clip_max", run.all_steps, 1.0)
    assert only("exploding_gradients", run).severity == "info"


# ---- curvature


def test_a_curvature_above_the_edge_that_does_no_harm_is_no_fault():
    run = healthy()
    run.change("edge_ratio", 0, 3.0)
    assert find("lr_above_curvature", run) == []


def test_a_curvature_below_the_edge_acquits_the_rate():
    run = healthy()
    FAULTS["lr_too_high"](run, 60, 0.1)
    assert only("lr_too_high", run).onset_step is not None
    run.change("edge_ratio", 0, 0.4)
    assert find("lr_too_high", run) == []
    run.change("edge_ratio", 60, 0.0)  # measured only after the weights broke
    steps, ratio = run.signals["edge_ratio"]
    run.put("edge_ratio", steps[steps > 70], ratio[steps > 70])
    assert only("lr_too_high", run).onset_step is not None


def test_a_warmed_up_rate_that_replaced_the_weights_is_named_even_if_the_loss_ends_at_that_of_a_guess():
    run = healthy()
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.22, 0.01))
    run.change("update_ratio", 0, lambda s: np.where(s < 20, 0.2, 0.01))
    del run.signals["edge_ratio"]
    finding = only("lr_too_high", run)
    assert finding.remedies[0] == "lr_scale=0.05"  # 1 % of the weights, as in the first steps of a healthy run
    run.change("update_ratio", 0, lambda s: np.where(s < 3, 0.2, 0.01))
    assert find("lr_too_high", run) == []


def test_units_that_were_born_dead_are_not_told_to_lower_the_rate():
    run = healthy()
    run.change("update_ratio", 0, 1e-3)
    run.change("dead_units[relu]", 0, 1.0)
    assert only("dead_units", run).remedies == ()
    run = healthy()
    run.change("update_ratio", 0, 0.1)
    run.change("dead_units[relu]", 50, 1.0)
    assert only("dead_units", run).remedies[0] == "lr_scale"


def test_one_measurement_above_the_edge_is_not_enough():
    run = sick("lr_too_high", onset=60)
    assert CAUSES["lr_above_curvature"].find(run) == []
    other = healthy()
    FAULTS["lr_too_high"](other, 60, 0.5)
    steps, ratio = other.signals["edge_ratio"]
    other.put("edge_ratio", steps, np.where(steps == 60, 9.0, ratio))
    assert find("lr_above_curvature", other) == []


def test_the_measured_curvature_explains_the_generic_finding_and_names_a_rate():
    run = healthy()
    FAULTS["lr_too_high"](run, 60, 0.5)
    run.burst(60)
    run.change("edge_ratio", 60, 4.0)
    first, *others = diagnose(run.record())
    assert first.cause == "lr_above_curvature"
    assert "Half of the edge would be a rate of 1.25e-4." in first.summary  # 1e-3 / 4 / 2
    assert [f.severity for f in others if f.cause == "lr_too_high"] == ["info"]


def test_a_rate_that_the_run_never_bears_is_no_matter_of_warm_up():
    run = healthy()
    FAULTS["warmup_too_short"](run, 0, 0.5)
    run.change("edge_ratio", 0, 5.0)
    assert find("warmup_too_short", run) == []


def test_a_network_that_the_first_steps_killed_would_not_live_by_a_warm_up():
    run = healthy()
    FAULTS["warmup_too_short"](run, 0, 0.5)
    run.put("loss", run.all_steps, np.where(run.all_steps < 5, 2.3, np.where(run.all_steps < 25, 8.0, 2.31)))
    assert find("warmup_too_short", run) == []


def test_calm_at_a_lower_rate_says_nothing_about_the_higher_one():
    run = healthy()
    FAULTS["warmup_too_short"](run, 0, 0.5)
    run.change("lr", 25, 5e-4)
    assert find("warmup_too_short", run) == []


def test_a_warm_up_that_was_too_short_explains_what_was_found_before_it_was_known():
    run = healthy()
    FAULTS["warmup_too_short"](run, 0, 0.5)
    record = run.record()
    known = find("warmup_too_short", run)[0].detected_step
    assert diagnose(record.until(known - 1))[0].cause == "lr_above_curvature"
    first, *others = diagnose(record)
    assert first.cause == "warmup_too_short"
    assert all(f.severity == "info" for f in others)


def test_a_catapult_advises_nothing_and_alarms_nobody():
    finding = only("benign_catapult", sick("benign_catapult"))
    assert (finding.severity, finding.remedies) == ("info", ())
    assert [f for f in diagnose(sick("benign_catapult")) if f.severity != "info"] == []


@pytest.mark.parametrize("missing", ["edge", "flatter", "back"])
def test_a_spike_is_a_catapult_only_if_all_signs_are_there(missing):
    run = healthy()
    FAULTS["benign_catapult"](run, 60, 0.5)
    if missing == "edge":
        run.change("edge_ratio", 0, 0.7)
    elif missing == "flatter":
        run.change("sharpness", 0, 50.0)
    else:
        run.change("loss", 60, 4.0)
    assert find("benign_catapult", run) == []


# ---- scale


def test_a_collapsed_softmax_whose_samples_are_wrong_still_learns():
    run = healthy()
    run.change("softmax_collapse", 50, 1.0)  # sure of the wrong class: the loss is large, and so is its gradient
    assert find("softmax_collapse", run) == []


@pytest.mark.parametrize(("rest", "severity"), [(0.02, "info"), (0.5, "warning")])
def test_a_collapsed_softmax_is_harmless_where_nothing_is_left_to_fit(rest, severity):
    run = healthy()
    run.put("loss", run.all_steps, run.noisy(run.all_steps, rest + 2.3 * np.exp(-run.all_steps / 10)))
    FAULTS["softmax_collapse"](run, 120, 0.5)
    assert only("softmax_collapse", run).severity == severity


def test_a_loss_that_large_logits_began_far_above_a_guess_is_not_small_for_that():
    run = healthy()
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 2.0 + 300.0 * np.exp(-run.all_steps / 10)))
    FAULTS["softmax_collapse"](run, 120, 0.5)
    assert only("softmax_collapse", run).severity == "warning"


def test_an_effective_rate_that_falls_with_the_schedule_is_as_it_should_be():
    run = healthy()
    FAULTS["norm_growth"](run, 60, 0.5)
    run.change("lr", 60, 1e-4)
    assert find("norm_growth", run) == []


def test_norms_that_grew_by_the_end_of_training_have_done_their_work():
    run = healthy()
    FAULTS["norm_growth"](run, 60, 0.5)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 0.1 + 2.2 * np.exp(-run.all_steps / 20)))
    assert find("norm_growth", run) == []


def test_scaling_up_while_samples_are_still_wrong_is_learning():
    run = healthy()
    FAULTS["loss_scaling"](run, 60, 1.0)
    run.put("loss", run.all_steps, run.noisy(run.all_steps, 0.1 + 2.2 * np.exp(-run.all_steps / 10)))
    assert find("loss_scaling", run) == []


def test_scaling_and_the_collapse_it_ends_in_do_no_harm_to_data_that_are_fitted():
    run = healthy()
    FAULTS["loss_scaling"](run, 60, 1.0)
    FAULTS["softmax_collapse"](run, 120, 0.5)
    found = diagnose(run.record())
    assert {f.cause: f.severity for f in found} == {"loss_scaling": "info", "softmax_collapse": "info"}


def test_a_catapult_explains_its_own_swing_and_nothing_after_it():
    run = healthy()
    FAULTS["benign_catapult"](run, 60, 0.5)
    known = only("benign_catapult", run).detected_step
    diverge(run, 150)
    run.change("update_ratio", 150, 0.5)
    run.burst(150)
    serious = [f for f in diagnose(run.record()) if f.severity != "info"]
    assert [f.cause for f in serious] == ["lr_too_high"]
    assert serious[0].onset_step > known


def test_bad_numbers_from_one_step_to_the_next_are_no_swing():
    run = healthy()
    run.change("edge_ratio", 0, 5.0)
    run.change("loss", 60, float("nan"))
    assert find("lr_above_curvature", run) == []
    run.change("loss", 57, lambda s: np.where(s < 60, 10.0 ** (s - 55), np.nan))
    assert [f.event_step for f in find("lr_above_curvature", run)] != []


def test_a_loss_without_a_floor_is_not_fitted_because_it_is_small():
    run = healthy()
    FAULTS["loss_scaling"](run, 60, 1.0)
    run.change("loss", 10, -1.0)
    assert find("loss_scaling", run) == []
