"""The audit of a deployed classifier: its verdict, its findings, and what it says it did not check."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from poise.shift import CBPE, IntervalThreshold, audit_deployment
from poise.shift.deployment_audit import measure as measuring
from poise.shift.deployment_audit.input_drift import effect_size

ROLES = {"y_true": "y", "y_score": "p", "features": ["x", "z"]}


def table_of(report, title):
    return next(block for block in report.blocks if getattr(block, "title", None) == title)


def text_of(report):
    return report.blocks[-1].markdown


def test_unshifted_production_holds(reference, production):
    report = audit_deployment(reference, production.drop(columns="y"), **ROLES, chunk=2000)
    assert report.verdict == "holds"
    assert "No drift of the inputs that matters." in report.summary
    assert not [finding for finding in report.findings if finding.severity != "info"]
    assert "Without labels no method can see it" in text_of(report)


def test_a_shift_to_harder_rows_is_a_drop(reference, make_table):
    hard = make_table(20_000, 3)
    hard = hard[hard["x"].abs() < 0.7]  # scores near one half
    report = audit_deployment(reference, hard, **ROLES)
    assert report.verdict == "dropped"
    assert report.findings[0].cause == "performance_drop"
    assert report.findings[0].severity == "error"
    row = table_of(report, "The last chunk").rows[0]
    assert abs(row[2] - row[6]) < 0.03  # the estimate and what the labels say


def test_rows_unlike_the_reference_cannot_be_told(reference, make_table):
    report = audit_deployment(reference, make_table(1000, 3, shift=8.0), **ROLES)
    assert report.verdict == "cannot be told"
    assert {"unsupported_rows", "input_drift"} <= {finding.cause for finding in report.findings}
    assert "cannot be told" in report.summary


def test_labels_that_disagree_are_a_concept_shift(reference, production):
    changed = production.assign(y=1 - production["y"])
    report = audit_deployment(reference, changed, **ROLES)
    assert "concept_shift" in {finding.cause for finding in report.findings}


@pytest.mark.slow
def test_a_million_rows_with_a_tiny_shift_have_no_drift_that_matters():
    random = np.random.default_rng(0)

    def table(n, shift):
        x = random.normal(shift, 1, n)
        p = 1 / (1 + np.exp(-x))
        return pl.DataFrame({"x": x, "p": p, "y": (random.random(n) < p).astype(int)})

    report = audit_deployment(table(50_000, 0.0), table(1_000_000, 0.005), y_true="y", y_score="p")
    assert "No drift of the inputs that matters." in report.summary
    assert report.verdict == "holds"


def test_periods_use_the_only_column_of_times(reference, production):
    report = audit_deployment(reference, production, y_true="y", y_score="p", chunk="1W", estimator=CBPE)
    assert len(table_of(report, "Support").rows) == 2
    assert "day (a time)" not in text_of(report)


def test_an_interrupted_audit_reports_what_is_done(reference, production, monkeypatch):
    done = measuring.CBPE.chunk_estimate

    def interrupted(self, frame, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return done(self, frame, number, *rest)

    monkeypatch.setattr(measuring.CBPE, "chunk_estimate", interrupted)
    report = audit_deployment(reference, production, **ROLES, chunk=1000, estimator=CBPE)
    assert "**Interrupted** after 2 of 4 chunks" in text_of(report)
    monkeypatch.setattr(measuring.CBPE, "chunk_estimate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        audit_deployment(reference, production, **ROLES, chunk=1000, estimator=CBPE)


def test_columns_that_are_left_out_are_named(reference, production):
    old, new = (frame.assign(id=np.arange(len(frame)), year=2015) for frame in (reference, production))
    report = audit_deployment(old, new, y_true="y", y_score="p", estimator=CBPE)
    assert "id (another value in every row, as an identifier)" in text_of(report)
    assert "year (constant in the reference)" in text_of(report)


def test_the_report_is_plain_data_and_the_tables_are_untouched(reference, production):
    before = production.copy()
    report = audit_deployment(reference, production, **ROLES, estimator=CBPE, threshold=IntervalThreshold(0.05))
    pd.testing.assert_frame_equal(before, production)
    assert type(report).from_dict(report.to_dict()).to_dict() == report.to_dict()
    assert "<html" in report.to_html()


def test_regression_is_refused(reference, production):
    with pytest.raises(ValueError, match="classification only, no regression"):
        audit_deployment(reference.assign(y=reference["x"]), production, **ROLES)


def test_effect_sizes_have_their_closed_forms():
    x = np.linspace(-1, 1, 1001)
    assert effect_size(x, x + 0.3, categorical=False) == pytest.approx(0.3 / x.std())
    assert effect_size(x, x, categorical=False) == 0
    codes = np.repeat([0.0, 1.0], 50)
    assert effect_size(codes, np.repeat([0.0, 1.0], [20, 80]), categorical=True) == pytest.approx(0.3)
    assert effect_size(codes, np.repeat([np.nan, 1.0], [40, 60]), categorical=True) == pytest.approx(0.5)
    assert effect_size(x, np.full(3, np.nan), categorical=False) == 1
    assert effect_size(np.ones(4), np.array([1.0, 1.0, 2.0, 2.0]), categorical=False) == 0.5
