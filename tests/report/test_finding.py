import json

import numpy as np
import pytest

from poise.report import Evidence, Finding


def test_numpy_scalars_become_json():
    evidence = Evidence("loss", np.float32(1.5), step=np.int64(7))
    finding = Finding("x", "info", np.float32(0.5), "s", onset_step=np.int64(3), evidence=[evidence])
    back = json.loads(json.dumps(finding.to_dict()))
    assert Finding.from_dict(back) == finding
    assert back["evidence"][0]["value"] == 1.5
    assert back["onset_step"] == 3


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_evidence_survives_strict_json(value):
    finding = Finding("x", "error", 1.0, "s", evidence=(Evidence("loss", value),))
    text = json.dumps(finding.to_dict(), allow_nan=False)
    assert Finding.from_dict(json.loads(text)) == finding


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"severity": "fatal"}, ValueError, "severity.*'fatal'"),
        ({"probability": 1.1}, ValueError, "probability.*1.1"),
        ({"probability": float("nan")}, ValueError, "probability.*nan"),
        ({"where": "blocks.0"}, TypeError, "where.*'blocks.0'"),
        ({"onset_step": 1.5}, ValueError, "whole number.*1.5"),
    ],
)
def test_bad_findings_are_named(change, error, words):
    good = {"cause": "x", "severity": "info", "probability": 0.5, "summary": "s"}
    with pytest.raises(error, match=words):
        Finding(**(good | change))
