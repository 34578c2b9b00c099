"""`poise.watch` in custom loops."""

import json

import pytest
import torch
from torch import nn

import poise


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(256, 4)
    return model, optimizer, x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()


def train(model, optimizer, x, y, steps=80, reset=True):
    for _ in range(steps):
        i = torch.randint(256, (32,))
        loss = nn.functional.cross_entropy(model(x[i]), y[i])
        if reset:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_healthy_loop_has_no_serious_finding(tmp_path):
    model, optimizer, x, y = setup()
    with poise.watch(model, optimizer, out=tmp_path / "run") as run:
        train(model, optimizer, x, y)
    assert [f for f in run.findings if f.severity != "info"] == []
    assert len(run.record["loss"]) == 80
    assert (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "findings.json").read_text()) == [f.to_dict() for f in run.findings]
    assert run.report()._repr_html_().startswith("<")
    assert run._repr_html_() is not None


def test_a_folder_that_is_changed_within_the_loop_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with poise.watch(*setup()[:2], out="run") as run:
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.out == tmp_path / "run"
    assert {p.name for p in run.out.iterdir()} == {"run.db", "findings.json", "report.html"}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_bug_is_found():
    model, optimizer, x, y = setup()
    run = poise.watch(model, optimizer).start()
    train(model, optimizer, x, y, reset=False)
    findings = run.stop()
    assert findings[0].cause == "missing_zero_grad"
    assert run.findings == findings
    assert run.out.exists()


def test_only_the_given_optimizer_is_watched(tmp_path):
    model, optimizer, x, y = setup()
    other = setup()
    with poise.watch(model, optimizer, out=tmp_path / "run") as run:
        train(*other, steps=5)
        train(model, optimizer, x, y, steps=7)
    assert len(run.record["lr"]) == 7


def test_an_exception_passes_through_and_leaves_a_report(tmp_path):
    model, optimizer, x, y = setup()

    def fail():
        train(model, optimizer, x, y, steps=5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), poise.watch(model, optimizer, out=tmp_path / "run"):
        fail()
    assert (tmp_path / "run" / "report.html").exists()
    (end,) = poise.store.read_run(tmp_path / "run" / "run.db").events("script_end")
    assert end.payload["how"] == "exception"


def test_remedies_act():
    model, optimizer, x, y = setup()
    with poise.watch(model, optimizer, remedies=["lr_scale=0.1"]) as run:
        train(model, optimizer, x, y, steps=5)
    assert run.record["lr"].values.tolist() == pytest.approx([1e-3] * 5)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_bad_input(tmp_path):
    model, optimizer, x, y = setup()
    with pytest.raises(TypeError, match="model must be a torch Module or a list of them, got AdamW"):
        poise.watch(optimizer, optimizer)
    with pytest.raises(TypeError, match="optimizer must be a torch Optimizer or a list of them, got Sequential"):
        poise.watch(model, model)
    with pytest.raises(TypeError, match="model must not be an empty list"):
        poise.watch([], optimizer)
    with pytest.raises(ValueError, match="remedy 'nope' is unknown"):
        poise.watch(model, optimizer, remedies=["nope"])
    with pytest.raises(ValueError, match="attention_logit_growth"):
        poise.watch(model, optimizer, select=["attention_logit"])
    run = poise.watch(model, optimizer, out=tmp_path / "run")
    with pytest.raises(RuntimeError, match="after stop"):
        run.record  # noqa: B018 - reading it is what raises
    with run:
        train(model, optimizer, x, y, steps=2)
    with pytest.raises(RuntimeError, match="started once"):
        run.start()
    with pytest.raises(FileExistsError, match="already holds a run"):
        poise.watch(model, optimizer, out=tmp_path / "run")
