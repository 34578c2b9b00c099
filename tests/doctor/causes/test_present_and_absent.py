"""Every cause speaks where it is present, is silent on healthy runs, and is causal in time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.doctor.causes import CAUSES
from poise.doctor.diagnose import diagnose
from poise.report.finding import Finding

from .synthetic import FAULTS, healthy, sick

strengths = st.floats(0.0, 1.0)
onsets = st.integers(40, 100)
cadences = st.sampled_from([1, 5, 10, 20])
seeds = st.integers(0, 10_000)


def identity(finding: Finding) -> tuple:
    return finding.cause, finding.where, finding.onset_step, finding.detected_step


HARMLESS = ("benign_catapult", "loss_scaling")  # to the training itself


def test_every_cause_has_a_synthetic_fault():
    assert set(FAULTS) == set(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
@settings(max_examples=6, deadline=None)
@given(onset=onsets, strength=strengths, every=cadences, seed=seeds)
def test_a_cause_that_is_present_is_found(cause, onset, strength, every, seed):
    record = sick(cause, onset, strength, every=every, seed=seed)
    (finding,) = CAUSES[cause].find(record)
    assert finding.severity in (("info",) if cause in HARMLESS else ("warning", "error"))
    assert finding.probability >= (0.95 if CAUSES[cause].exact else 0.5)
    assert finding.detected_step >= (finding.onset_step or 0)
    assert finding.detected_step <= record.last_step
    if finding.onset_step not in (None, 0) and cause not in (
        "missing_zero_grad",
        "lr_too_small",
        "exploding_gradients",
    ):
        assert finding.onset_step <= onset + 4 * every + 30


@pytest.mark.parametrize("cause", CAUSES)
def test_diagnosis_names_the_root_first(cause):
    assert diagnose(sick(cause))[0].cause == cause


@pytest.mark.parametrize("cause", CAUSES)
@settings(max_examples=6, deadline=None)
@given(onset=onsets, strength=strengths, every=cadences, seed=seeds, data=st.data())
def test_findings_depend_only_on_the_past(cause, onset, strength, every, seed, data):
    record = sick(cause, onset, strength, every=every, seed=seed)
    whole = {identity(f) for f in diagnose(record)}
    around = sorted({step + d for *_, step in whole for d in (-1, 0, 1)})
    for t in [*around, data.draw(st.integers(0, record.last_step))]:
        then = {identity(f) for f in diagnose(record.until(t))}
        assert then == {key for key in whole if key[-1] <= t}


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(60, 400), every=cadences, seed=seeds, tau=st.floats(5.0, 150.0))
def test_healthy_runs_are_silent(steps, every, seed, tau):
    findings = diagnose(healthy(steps, every, seed, tau).record())
    assert [f for f in findings if f.severity != "info"] == []


@settings(max_examples=10, deadline=None)
@given(
    causes=st.lists(st.sampled_from(sorted(FAULTS)), min_size=2, max_size=4), onset=onsets, seed=seeds, data=st.data()
)
def test_several_faults_at_once_stay_causal(causes, onset, seed, data):
    run = healthy(seed=seed)
    for cause in causes:
        FAULTS[cause](run, onset + data.draw(st.integers(0, 20)), 0.5)
    record = run.record()
    whole = {identity(f) for f in diagnose(record)}
    t = data.draw(st.integers(0, record.last_step))
    assert {identity(f) for f in diagnose(record.until(t))} == {key for key in whole if key[-1] <= t}


@pytest.mark.parametrize("cause", CAUSES)
def test_findings_are_plain_json_with_known_remedies(cause):
    from poise.doctor.remedies import REMEDIES

    for finding in diagnose(sick(cause)):
        plain = json.loads(json.dumps(finding.to_dict(), allow_nan=False))
        assert identity(Finding.from_dict(plain)) == identity(finding)
        assert {spec.partition("=")[0] for spec in plain["remedies"]} <= set(REMEDIES)
        assert finding.summary.endswith(".")


@pytest.mark.parametrize("cause", CAUSES)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_values_that_are_not_finite_never_break_a_rule(cause, seed, bad):
    run = healthy(seed=seed)
    for name, (steps, values) in list(run.signals.items()):
        hit = run.random.random(len(steps)) < 0.1
        run.put(name, steps, np.where(hit, bad, values))
    for finding in CAUSES[cause].find(run.record()):
        assert 0 <= finding.probability <= 1


@pytest.mark.parametrize("cause", CAUSES)
def test_an_empty_record_has_no_findings(cause):
    assert CAUSES[cause].find(healthy().record().until(-1)) == []
