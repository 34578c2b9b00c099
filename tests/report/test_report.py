import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.report import SEVERITIES, Code, Evidence, Figure, Finding, Report, Table, Text

words = st.text(min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=True)
steps = st.none() | st.integers(0, 10**9)
evidence = st.builds(Evidence, words, numbers, st.none() | numbers, st.none() | numbers, steps)
findings = st.builds(
    Finding, words, st.sampled_from(SEVERITIES), st.floats(0, 1), words, st.lists(words, max_size=2).map(tuple),
    steps, steps, steps, st.lists(evidence, max_size=2).map(tuple), st.lists(words, max_size=2).map(tuple),
)  # fmt: skip
curves = st.lists(numbers, max_size=5)
figures = st.builds(lambda y, bar: go.Figure([go.Scatter(y=np.array(y)), go.Bar(y=bar)]), curves, curves)
blocks = (
    st.builds(Text, words, st.none() | words)
    | st.builds(Code, words, words, st.sampled_from(["python", "diff", "bash", "text"]))
    | st.builds(Table, words, st.just(["a", "b"]), st.lists(st.tuples(numbers, words), max_size=3))
    | st.builds(Figure, words, figures, words, st.none() | words)
)
meta = st.dictionaries(words, st.recursive(st.none() | numbers | words, lambda inner: st.lists(inner, max_size=2)))
reports = st.builds(
    Report, words, words, st.lists(findings, max_size=2), st.lists(blocks, max_size=2), meta, st.none() | words
)


@settings(max_examples=30, deadline=None)
@given(reports)
def test_every_report_survives_strict_json(report):
    kept = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report.from_dict(kept).to_dict() == kept


def test_numpy_in_meta_becomes_plain():
    report = Report("t", "s", meta={"lr": np.float32(0.5), "seeds": np.arange(2), "path": Path("a"), "nan": np.nan})
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["meta"]["seeds"] == [0, 1]
    assert np.isnan(Report.from_dict(data).meta["nan"])


def test_reports_do_not_share_blocks():
    one, other = Report("a", "b"), Report("a", "b")
    assert one.add(Text("x")) is one
    assert other.blocks == []


def test_save_makes_folders_replaces_and_leaves_no_draft(tmp_path):
    path = tmp_path / "a" / "b" / "report.html"
    assert Report("first", "s").save(path) == path
    assert Report("second", "s").save(str(path)) == path
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_failed_save_leaves_the_old_report(tmp_path, monkeypatch):
    path = Report("first", "s").save(tmp_path / "report.html")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"report.html.*No space left"):
        Report("second", "s").save(path)
    assert "<h1>first</h1>" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match="path must name a file"):
        Report("t", "s").save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"path must be a place .*report\.html"):
        Report("t", "s").save(tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"title": ""}, ValueError, "title"),
        ({"title": 3}, TypeError, "title.*int"),
        ({"summary": " "}, ValueError, "summary"),
        ({"verdict": ""}, ValueError, "verdict"),
        ({"findings": ["x"]}, TypeError, r"findings\[0\].*str"),
        ({"blocks": [go.Figure()]}, TypeError, "block must be a Text, Table, Figure or Code, got Figure"),
        ({"meta": []}, TypeError, "meta.*list"),
        ({"meta": {"a": {"b": object()}}}, TypeError, r"meta\['a'\]\['b'\].*object"),
    ],
)
def test_bad_reports_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        Report(**({"title": "t", "summary": "s"} | arguments))


def test_unknown_blocks_and_languages_are_named(sample):
    data = sample().to_dict()
    data["blocks"][0]["kind"] = "film"
    with pytest.raises(ValueError, match="film"):
        Report.from_dict(data)
    with pytest.raises(ValueError, match=r"language.*'cobol'"):
        Code("t", "x", "cobol")
