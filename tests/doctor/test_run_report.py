from __future__ import annotations

import json

import numpy as np
import pytest

from poise.doctor.causes import CAUSES
from poise.doctor.diagnose import diagnose
from poise.doctor.run_report import run_report
from poise.report import Code, Figure, Report, Table, Text
from poise.store import Event, Record

from .causes.synthetic import FAULTS, healthy, sick


def report_of(record: Record) -> Report:
    return run_report(record, diagnose(record))


def figures(report: Report) -> dict[str, Figure]:
    return {block.title: block for block in report.blocks if isinstance(block, Figure)}


@pytest.mark.parametrize("cause", sorted(FAULTS))
def test_the_report_leads_with_the_root_and_survives_json(cause):
    record = sick(cause)
    findings = diagnose(record)
    report = run_report(record, findings)
    assert findings[0].cause == cause
    if findings[0].severity == "info":
        assert report.verdict == "healthy"
    else:
        assert report.verdict == CAUSES[cause].title
        assert findings[0].summary in report.summary
    assert report.findings == findings
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again.to_dict() == report.to_dict()


def test_loss_gradients_and_attention_are_drawn_with_their_moments():
    record = sick("attention_logit_growth", onset=60)
    root = diagnose(record)[0]
    drawn = figures(report_of(record))
    assert {"Loss", "Gradient norm before clipping", "Largest attention logit", "Entropy of attention"} <= set(drawn)
    marked = {shape.x0 for shape in drawn["Loss"].figure.layout.shapes}
    assert root.onset_step in marked
    (loss,) = drawn["Loss"].figure.data
    np.testing.assert_array_equal(np.asarray(loss.y, dtype=float), record["loss"].values)


def test_evidence_that_has_a_curve_of_its_own_is_drawn():
    assert any(title.startswith("Update lost of") for title in figures(report_of(sick("bf16_update_lost"))))


def test_remedies_come_with_the_lines_that_make_them_permanent():
    report = report_of(sick("lr_too_small"))
    code = [block for block in report.blocks if isinstance(block, Code)]
    assert any("*= 3000.0" in block.code for block in code)
    assert code[-1].language == "bash"
    assert "--remedy lr_scale=3000" in code[-1].code


def test_a_cause_without_remedies_still_has_advice():
    blocks = report_of(sick("double_softmax")).blocks
    assert any(isinstance(block, Text) and "cross_entropy" in block.markdown for block in blocks)


def test_facts_name_script_model_and_optimizer():
    run = healthy()
    run.event(199, "script_end", how="finished", detail=None)
    record = Record.from_arrays(run.signals, run.events, {"script": "train.py"})
    (facts,) = [b for b in report_of(record).blocks if isinstance(b, Table) and b.title == "Facts"]
    rows = {row[0]: row[1] for row in facts.rows}
    assert rows["script"] == "train.py"
    assert rows["optimizer steps"] == 200
    assert rows["model"] == "Net, 384 parameters in 6 tensors (float32)"
    assert rows["optimizer"].startswith("AdamW(lr=0.001")
    assert rows["end of the script"] == "finished"


def test_a_healthy_run_is_called_healthy():
    report = report_of(healthy().record())
    assert (report.verdict, report.summary) == ("healthy", "Nothing unstable was found in 200 steps.")


def test_a_divergence_without_a_cause_is_undetermined():
    run = healthy()
    run.change("loss", 100, lambda s: 2.0 + 0.02 * (s - 100))
    report = report_of(run.record())
    assert report.verdict == "undetermined"
    assert "none of the known causes was found" in report.summary


def test_an_empty_record_says_so():
    assert report_of(Record.from_arrays({})).verdict == "nothing was recorded"
    only_events = Record.from_arrays({}, [Event(0, "script_end", {"how": "exit", "detail": "7"})])
    assert "exit: 7" in str(report_of(only_events).to_dict())


def test_values_that_are_not_finite_do_not_break_the_charts():
    run = healthy()
    for name in ("loss", "grad_norm", "attention_logit_max[blocks.0.attn]", "attention_entropy[blocks.0.attn]"):
        run.change(name, 100, np.nan)
    json.dumps(report_of(run.record()).to_dict(), allow_nan=False)
