"""The clinic's scripts and scores, and what the study measures of its runs."""

import json

import numpy as np
import pytest

from poise.doctor.causes import CAUSES
from poise.report import Finding
from poise.store import Record
from poise.studies.clinic import cases, controls, export, faults
from poise.studies.clinic.baselines import BASELINES, answers, deviations, growth, schedule_features
from poise.studies.clinic.corpus import edited
from poise.studies.clinic.runner import Curves, Run, curves_of
from poise.studies.clinic.scoring import Answer, score
from poise.studies.training_doctor import cells, confidences, event, leads


def test_the_clinic_is_as_large_as_it_should_be():
    assert len(faults()) >= 48
    assert len(controls()) >= 24


@pytest.mark.parametrize("case", cases().values(), ids=lambda case: case.name)
def test_a_script_is_a_program_without_poise(case):
    compile(case.source, case.name, "exec")
    assert "poise" not in case.source
    assert "sys.argv[1]" in case.source
    assert "score: " in case.source


@pytest.mark.parametrize("case", faults(), ids=lambda case: case.name)
def test_a_fault_has_a_label_that_the_doctor_can_give(case):
    assert set(case.causes) & set(CAUSES)
    assert case.what
    assert case.harm in ("score", "loss", "contract")
    assert case.source != cases()[case.script].source


def test_scripts_are_different():
    assert len({case.source for case in cases().values()}) == len(cases())


@pytest.mark.parametrize("text", ["a = 1\n", "lr = 1; lr = 2\n"])
def test_an_edit_that_does_not_match_one_place_is_an_error(text):
    with pytest.raises(ValueError, match="'some-fault' must match one place each"):
        edited(text, [["lr", "rate"]], "some-fault")


def test_edits_follow_each_other():
    assert edited("a b", [["a", "b c"], ["c", "d"]], "x") == "b d b"


def test_an_export_holds_every_script_and_its_label(tmp_path):
    labels = json.loads(export(tmp_path / "clinic").read_text("utf-8"))
    assert set(labels) == set(cases())
    for name, label in labels.items():
        assert (tmp_path / "clinic" / f"{name}.py").read_text("utf-8") == cases()[name].source
        assert label["healthy"] == (not label["causes"])


def test_scores_are_fractions_of_runs():
    right, other = "mlp-no-zero-grad", "mlp-raw-pixels"
    given = [
        Answer(right, ("missing_zero_grad",)),
        Answer(right, ("alarm", "another", "missing_zero_grad")),
        Answer(other, ("alarm",)),
        Answer(other, ()),
        Answer("mlp", ()),
        Answer("cnn", ("alarm",)),
        Answer("vit", ()),
        Answer("vae", ()),
    ]
    result = score(given)
    assert (result.top1, result.top3) == (1 / 4, 2 / 4)
    assert result.silent == (False, False, False, True)
    assert result.false_alarms == 1 / 4
    assert result.precision == 1 / 4  # of three alarms on faults and one on a healthy script


def test_a_case_that_is_not_in_the_clinic_is_an_error():
    with pytest.raises(ValueError, match="'mlp-no-zero'"):
        score([Answer("mlp-no-zero", ())])


def test_a_spike_is_many_deviations_above_the_losses_before():
    loss = 1 + 0.01 * np.random.default_rng(0).standard_normal(60)
    loss[40] = 3.0
    z = deviations(loss)
    assert z[40] > 8
    assert np.delete(z, 40).max() < 8
    np.testing.assert_allclose(deviations(10 * loss), z, rtol=1e-6)  # free of scale


def test_a_loss_that_is_not_finite_is_infinitely_far():
    assert deviations(np.array([1.0] * 10 + [np.nan]))[-1] == np.inf


def test_growth_is_the_ratio_to_the_median_before():
    np.testing.assert_allclose(growth(np.array([2.0] * 30 + [8.0]))[[3, 29, 30]], [1.0, 1.0, 4.0])


def run_of(case, loss, lr=0.1, findings=(), seed=0):
    loss = np.asarray(loss, float)
    curves = Curves(loss, np.ones(len(loss)), np.full(len(loss), lr))
    return Run(case, seed, 0, 0.5, 1.0, "", "", tuple(findings), curves)


def finding(cause, step, severity="error", probability=0.9):
    return Finding(cause, severity, probability, "words", detected_step=step)


def test_a_lead_is_counted_from_the_first_alarm_to_the_event():
    loss = np.full(100, 1.0)
    loss[60:] = np.nan
    run = run_of("mlp-lr-too-high", loss, findings=[finding("dead_units", 1, "info"), finding("lr_too_high", 48)])
    assert event(run) == 60
    assert leads([run]) == [12]
    wrong = run_of("mlp-lr-too-high", loss, findings=[finding("dead_units", 48)])
    flat = run_of("mlp-lr-too-high", np.ones(100), findings=[finding("lr_too_high", 48)])
    assert leads([wrong, flat]) == []


def test_confidences_are_of_first_alarms():
    runs = [
        run_of("mlp-no-zero-grad", [1.0], findings=[finding("missing_zero_grad", 0, probability=0.8)]),
        run_of("mlp", [1.0], findings=[finding("dead_units", 0, probability=0.6)]),
        run_of("cnn", [1.0], findings=[finding("dead_units", 0, "info")]),
    ]
    assert confidences(runs) == [(0.8, True), (0.6, False)]


def test_a_classifier_learns_what_its_features_show():
    schedules = {"mlp": 0.03, "mlp-lr-too-high": 10.0, "mlp-lr-too-small": 1e-7}
    development = [run_of(case, np.ones(20), lr, seed=seed) for case, lr in schedules.items() for seed in range(3)]
    held_out = [run_of(case, np.ones(20), lr, seed=9) for case, lr in schedules.items()]
    result = score(answers(schedule_features, development, held_out))
    assert (result.top1, result.false_alarms) == (1.0, 0.0)
    unseen = score(answers(schedule_features, development, held_out, unseen=True))  # all are of one script
    assert unseen.top1 == 0.0


@pytest.mark.parametrize("features", BASELINES.values(), ids=list(BASELINES))
@pytest.mark.parametrize("loss", [[], [1.0], [np.nan] * 3, [1.0, 2.0, np.inf] * 20], ids=str)
def test_features_are_defined_for_every_run(features, loss):
    loss = np.asarray(loss, float)
    values = np.nan_to_num(features(Curves(loss, loss, loss)), posinf=1e6, neginf=-1e6)
    assert values.shape == features(Curves(np.ones(9), np.ones(9), np.ones(9))).shape
    assert np.isfinite(values).all()


def test_curves_are_of_the_optimizer_with_most_losses():
    record = Record.from_arrays(
        {
            "loss": ([0, 1], [5.0, 4.0]),
            "opt1/loss": ([0, 1, 3], [1.0, 2.0, 3.0]),
            "opt1/lr": ([0, 1, 2, 3], [0.1, 0.1, 0.1, 0.2]),
        }
    )
    curves = curves_of(record)
    np.testing.assert_array_equal(curves.loss, [1.0, 2.0, 2.0, 3.0])
    np.testing.assert_array_equal(curves.lr, [0.1, 0.1, 0.1, 0.2])
    assert curves_of(Record.from_arrays({})) is None


@pytest.mark.parametrize("budget", ["tiny", "default", "full"])
def test_halves_have_the_same_cases_and_different_seeds(budget):
    seeds = range(6)
    first, second = cells(budget, seeds)
    assert {case for case, _ in first} == {case for case, _ in second}
    assert {seed for _, seed in first}.isdisjoint({seed for _, seed in second})
    assert len(set(first)) == len(first)


def test_both_sets_of_seeds_together_take_all_cases():
    taken = [{case for case, _ in cells("default", range(start, start + 4))[0]} for start in (0, 100)]
    assert taken[0] | taken[1] == set(cases())
    assert taken[0].isdisjoint(taken[1])
