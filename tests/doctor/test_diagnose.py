from __future__ import annotations

import json

import numpy as np
import pytest

from poise.doctor.causes import CAUSES
from poise.doctor.diagnose import attribute, choose_causes, consequences, diagnose, explained, find_cause
from poise.doctor.explain import explain, list_causes
from poise.doctor.remedies import REMEDIES, parse_remedy
from poise.report.finding import SEVERITIES, Finding
from poise.store import Event, Record

from .causes.synthetic import FAULTS, WEIGHTS, healthy, sick

SECTIONS = ["## What it is", "## Why it hurts", "## How it is detected", "## What cures it", "## References"]


def finding(cause: str, severity="error", probability=0.9, onset: int | None = 10, detected=20, event=None) -> Finding:
    return Finding(cause, severity, probability, "It happened.", (), onset, detected, event)


# ---- the catalogue


def test_the_catalogue_is_what_the_files_say():
    for name, cause in CAUSES.items():
        assert cause.id == name
        assert set(cause.leads_to) <= set(CAUSES)
        assert all(parse_remedy(spec).name in REMEDIES for spec in cause.remedies)


def test_no_cause_leads_to_itself():
    assert [name for name in CAUSES if name in consequences(name)] == []


def test_explain_shows_the_documentation_and_takes_hyphens():
    text = explain("attention-logit-growth")
    assert text.startswith("# Attention logits grow without bound")
    assert all(section in text for section in SECTIONS)
    assert "--remedy logit_soft_cap" in text


def test_list_causes_has_one_row_each():
    rows = [line for line in list_causes().splitlines() if line.startswith("- ")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(CAUSES)


def test_an_unknown_cause_is_an_error_that_offers_the_nearest():
    with pytest.raises(ValueError, match="did you mean dead_units"):
        find_cause("dead_unit")
    with pytest.raises(ValueError, match="neither a rule nor a remedy"):
        explain("zzz")


# ---- which causes are selected


def test_select_and_ignore():
    assert [c.id for c in choose_causes(["lr-too-high", "dead_units"], ["dead-units"])] == ["lr_too_high"]
    assert len(choose_causes()) == len(CAUSES)
    record = sick("mode_error")
    assert [f.cause for f in diagnose(record, select=["mode_error"])] == ["mode_error"]
    assert "mode_error" not in [f.cause for f in diagnose(record, ignore=["mode_error"])]
    with pytest.raises(ValueError, match="mode_error"):
        diagnose(record, ignore=["mode_eror"])


# ---- attribution


def test_a_root_explains_what_it_leads_to_and_inherits_its_severity_and_event():
    root = finding("unscaled_inputs", "warning", 0.9, onset=0)
    consequence = finding("lr_too_high", "error", 0.95, onset=5, event=5)
    first, second = attribute([root, consequence])
    assert (first.cause, first.severity, first.event_step) == ("unscaled_inputs", "error", 5)
    assert (second.severity, explained(second)) == ("info", True)
    assert second.summary == "It happened. Explained by unscaled_inputs."


def test_chains_end_at_the_root():
    chain = [finding("bad_batch", onset=1), finding("stale_second_moment", onset=1), finding("lr_too_high", onset=2)]
    assert [explained(f) for f in attribute(chain)] == [False, True, True]


def test_consequences_are_followed_through_causes_that_were_not_found():
    assert "forward_nonfinite" in consequences("schedule_jump")  # through lr_too_high
    far = [finding("schedule_jump", onset=1), finding("forward_nonfinite", probability=0.6, onset=9)]
    assert explained(attribute(far)[1])


@pytest.mark.parametrize(
    "root",
    [
        finding("unscaled_inputs", onset=30),  # began later
        finding("unscaled_inputs", severity="info", onset=0),  # harmless
        finding("unscaled_inputs", probability=0.4, onset=0),  # unsure
        finding("dead_units", onset=0),  # leads elsewhere
    ],
)
def test_what_does_not_explain(root):
    assert not explained(attribute([root, finding("lr_too_high")])[1])


def test_a_fact_is_explained_only_by_what_is_rather_sure():
    fact = finding("forward_nonfinite", probability=0.97)
    assert not explained(attribute([finding("lr_too_high", probability=0.7, onset=1), fact])[1])
    assert explained(attribute([finding("lr_too_high", probability=0.85, onset=1), fact])[1])


def test_attribution_changes_no_identity_and_drops_nothing():
    before = [finding(cause, onset=i) for i, cause in enumerate(CAUSES)]
    after = attribute(before)
    assert [(f.cause, f.where, f.onset_step, f.detected_step) for f in after] == [
        (f.cause, f.where, f.onset_step, f.detected_step) for f in before
    ]
    assert max(SEVERITIES.index(f.severity) for f in after) == max(SEVERITIES.index(f.severity) for f in before)


# ---- ranking


@pytest.mark.parametrize("cause", sorted(FAULTS))
def test_findings_come_best_first(cause):
    findings = diagnose(sick(cause, strength=1.0))
    order = [(explained(f), -SEVERITIES.index(f.severity)) for f in findings]
    assert order == sorted(order)
    json.dumps([f.to_dict() for f in findings], allow_nan=False)


# ---- several optimizers


def two_timelines(first, second) -> Record:
    signals = dict(first.signals) | {f"opt1/{name}": values for name, values in second.signals.items()}
    optimizer = Event(0, "optimizer", {"class": "AdamW", "timeline": "opt1/", "groups": []})
    return Record.from_arrays(signals, [*first.events, optimizer])


def test_a_later_timeline_is_diagnosed_and_named():
    second = healthy(seed=1)
    FAULTS["missing_zero_grad"](second, 0, 0.5)
    found = [f for f in diagnose(two_timelines(healthy(), second)) if f.severity == "error"]
    assert [(f.cause, f.where) for f in found] == [("missing_zero_grad", ("AdamW 2",))]


def test_losses_of_competing_networks_may_rise():
    generator = healthy(seed=1)
    t = generator.all_steps
    generator.put("loss", t, generator.noisy(t, 0.7 + 3 * (1 - np.exp(-t / 50))))
    generator.change("update_ratio", 0, 0.025)
    assert [f for f in diagnose(two_timelines(healthy(), generator)) if f.severity != "info"] == []


def test_what_belongs_to_no_optimizer_is_told_once():
    first = healthy()
    FAULTS["orphan_parameters"](first, 0, 0.5)
    found = [f for f in diagnose(two_timelines(first, healthy(seed=1))) if f.cause == "orphan_parameters"]
    assert [f.where for f in found] == [(WEIGHTS[5],)]


def test_nothing_recorded_nothing_found():
    assert diagnose(Record.from_arrays({})) == []


def test_no_edge_between_causes_follows_from_others():
    for cause in CAUSES.values():
        for other in cause.leads_to:
            through = {end for middle in cause.leads_to if middle != other for end in consequences(middle)}
            assert other not in through, f"{cause.id} leads to {other} through another cause: it need not be written"
        assert cause.id not in consequences(cause.id)


def test_what_a_cause_leads_to_leads_on():
    for cause in CAUSES.values():
        direct = set(cause.leads_to)
        assert consequences(cause.id) == direct.union(*(consequences(other) for other in direct))
