"""`poise preflight`: command-line templates, what is read from a run, and the report in words."""

import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from poise.cli.preflight import parse_lrs, parse_sets
from poise.preflight import SweepPoint, SweepResult
from poise.preflight.script_sweep.script_report import script_report
from poise.preflight.script_sweep.script_sweep import LOGIT, ScriptPlan, _Runs, read_script_run, with_remedy
from poise.preflight.sweeps.lr_crossing import lr_crossing
from poise.store import RunWriter

LRS, SIZES = (1e-3, 1e-2, 1e-1), (10, 20, 40)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("print('training')\n")
    return str(path)


def test_templates_are_replaced_and_what_changes_together_stays_together(script):
    args = ("--lr={lr}", "--width", "{width}", "--depth", "{depth}", "--name", "{other}")
    plan = ScriptPlan(script, args, {"width": ("16", "64"), "depth": ("2", "4")})
    assert plan.sizes == (16, 64)
    made, seeded = plan.command(3e-4, 1, 64)
    assert made == ["--lr=0.0003", "--width", "64", "--depth", "4", "--name", "{other}"]
    assert not seeded
    made, seeded = ScriptPlan(script, ("{lr}", "{seed}"), {}).command(1e-5, 7, None)
    assert (made, seeded) == (["1e-05", "7"], True)


@pytest.mark.parametrize(
    ("args", "sets", "message"),
    [
        (("--lr", "0.1"), {}, r"no argument of the script uses \{lr\}.* after --, .*\n.*-- --lr \{lr\} --seed"),
        (("{lr}", "{wdith}"), {"width": ("1", "2")}, r"uses \{width\}"),
        (("{lr}", "{a}", "{b}"), {"a": ("1", "2"), "b": ("1",)}, "as many values"),
        (("{lr}", "{a}"), {"a": ("2", "1")}, "positive and increasing"),
        (("{lr}", "{a}"), {"a": ("small", "big")}, "whole numbers"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(script, args, sets, message):
    with pytest.raises(ValueError, match=message):
        ScriptPlan(script, args, sets)


def test_a_missing_script_and_an_unknown_remedy_are_refused(script):
    with pytest.raises(FileNotFoundError, match="script must be a file"):
        ScriptPlan("nowhere.py", ("{lr}",), {})
    with pytest.raises(ValueError, match="unknown"):
        with_remedy(ScriptPlan(script, ("{lr}",), {}), "prayer")


def test_the_fingerprint_follows_the_script_but_not_the_sizes(script):
    def fingerprint(sets=None, args=("{lr}", "{width}")):
        return ScriptPlan(script, args, sets or {"width": ("1", "2")}).fingerprint

    first = fingerprint()
    assert fingerprint({"width": ("1", "2", "3")}) == first
    assert fingerprint(args=("{lr}", "{width}", "--fast")) != first
    assert fingerprint({"width": ("1", "2"), "lr": ("3", "4")}) != first
    with open(script, "a") as file:
        file.write("print('changed')\n")
    assert fingerprint() != first


def test_lrs_in_both_forms():
    assert parse_lrs("1e-4:1:9log") == [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1, 0.316, 1.0]
    assert parse_lrs("0.1,0.03") == [0.1, 0.03]
    for wrong in ("", "1:2", "1e-3:1:log", "1:1e-3:3log", "0:1:3log", "0.1,x", "0.1,0.1", "-1,1", "1e-3:1:1log", "nan"):
        with pytest.raises(ValueError, match="--lr must be LOW:HIGH:Nlog"):
            parse_lrs(wrong)


def test_sets():
    assert parse_sets(["width=64, 128", "depth=2,4"]) == {"width": ("64", "128"), "depth": ("2", "4")}
    for wrong in ("width", "width=", "=1", "a b=1", "w=1,,2"):
        with pytest.raises(ValueError, match="--set must be NAME="):
            parse_sets([wrong])
    for twice in (["a=1", "a=2"], ["lr=1"], ["seed=1"]):
        with pytest.raises(ValueError, match="given twice, or has an option"):
            parse_sets(twice)


def record(folder, losses, logits=(1.0, 2.0)):
    (folder / "run").mkdir(parents=True)
    writer = RunWriter(folder / "run" / "run.db")
    loss, layers = writer.group(["loss"]), writer.group([f"{LOGIT}[a]", f"{LOGIT}[b]"])
    for step, value in enumerate(losses):
        loss.append(step, [value])
        if step % 5 == 0:
            layers.append(step, [factor * (step + 1) for factor in logits])
    writer.close()


def test_what_is_read_from_a_run(tmp_path):
    record(tmp_path, np.linspace(5, 1, 101))
    out = read_script_run(tmp_path, 0)
    assert out["init_loss"] == 5
    assert out["loss"] == pytest.approx(np.linspace(5, 1, 101)[-11:].mean())
    assert out[LOGIT] == 2 * 76  # steps 50, 55, ..., 100 of layer b
    assert out["steps"] == 101
    assert math.isnan(read_script_run(tmp_path, 1)["loss"])


def test_a_run_without_a_loss_shows_the_output_of_the_script(tmp_path):
    (tmp_path / "stderr.txt").write_text("usage: train.py\ntrain.py: error: unrecognized arguments: --widht 3\n")
    with pytest.raises(ValueError, match=r"showed no loss with '--widht 3' \(exit code 2\):\n(.|\n)*unrecognized"):
        read_script_run(tmp_path, 2, ["--widht", "3"])


def power_law(lrs=LRS, sizes=SIZES, seeds=(0, 1), signal=lambda lr, n: 1000 * lr * n, failing=None):
    """A sweep whose signal follows a law; runs above ``failing`` diverge."""
    points = []
    for size in sizes:
        for lr in lrs:
            for seed in seeds:
                broken = failing is not None and lr > failing
                made = {} if signal is None else {LOGIT: signal(lr, size)}
                points.append(SweepPoint(lr, size, seed, math.nan if broken else 2 - lr + 0.001 * seed, 4.0, made))
    return SweepResult(tuple(lrs), tuple(sizes), tuple(seeds), tuple(points))


def test_the_crossing_of_a_power_law_is_exact():
    crossing = lr_crossing(power_law(), LOGIT, 160, threshold=5000)
    assert crossing.lr == pytest.approx(5000 / (1000 * 160))
    assert crossing.interval == pytest.approx((crossing.lr, crossing.lr))
    np.testing.assert_allclose([row[0] for row in crossing.expected], [160, 1600, 16000])


def test_a_limit_that_is_not_reached_is_infinite_and_one_that_is_always_exceeded_is_the_first():
    assert lr_crossing(power_law(), LOGIT, 160, threshold=1e9).lr == math.inf
    assert lr_crossing(power_law(), LOGIT, 160, threshold=1e-9).lr == LRS[0]


def test_the_interval_holds_the_crossing_and_shows_what_one_size_decides():
    bent = power_law(sizes=(10, 20, 40, 80), signal=lambda lr, n: 1000 * lr * n * (1.5 if n == 40 else 1))
    crossing = lr_crossing(bent, LOGIT, 320, threshold=5000)
    low, high = crossing.interval
    assert low < crossing.lr < high


def test_two_sizes_or_no_signal_give_no_forecast():
    assert lr_crossing(power_law(sizes=(10, 20)), LOGIT, 80) is None
    assert lr_crossing(power_law(signal=None), LOGIT, 80) is None


@pytest.fixture
def plan(script):
    return ScriptPlan(script, ("{lr}", "{width}"), {"width": ("10", "20", "40")})


def test_the_report_says_it_in_words(plan):
    law = power_law(failing=0.05, signal=lambda lr, n: 900 * lr * n)
    report = script_report(plan, {"": law}, 4.0, "poise preflight --remedy logit_soft_cap")
    assert report.verdict == "stable up to lr 0.01"
    assert "Stable up to lr 0.01; fails at 0.1 (decided by width 10)." in report.summary
    words = "At 4x the width (160) attention logits will cross 1e+04 near lr 0.069 (interval 0.069 to 0.069)."
    assert words in report.summary
    assert "--remedy logit_soft_cap" in json.dumps(report.to_dict())
    assert "soft_cap moves" not in report.summary


def test_a_measured_remedy_gets_its_sentence(plan):
    results = {"": power_law(failing=0.05), "logit_soft_cap": power_law(signal=lambda lr, n: 30.0)}
    report = script_report(plan, results, 4.0, "poise preflight --remedy logit_soft_cap")
    assert "With logit_soft_cap: stable up to lr 0.1, and attention logits will stay below 1e+04" in report.summary
    later = {"": power_law(), "lr_scale=0.5": power_law(signal=lambda lr, n: 700 * lr * n)}
    assert "lr_scale=0.5 moves that to lr 0.089" in script_report(plan, later, 4.0, "").summary
    normed = {"": power_law(failing=0.05), "qk_norm=1": power_law(signal=None)}
    words = "With qk_norm=1: stable up to lr 0.1, and the norm bounds attention logits at any size."
    assert words in script_report(plan, normed, 4.0, "").summary


def test_a_run_that_went_on_without_its_remedy_does_not_count_as_treated(tmp_path):
    record(tmp_path, np.linspace(5, 1, 101))
    (tmp_path / "again" / "run").mkdir(parents=True)
    writer = RunWriter(tmp_path / "again" / "run" / "run.db")
    writer.group(["loss"]).append(0, [1.0])
    writer.event(0, "remedy_failed", {"remedies": "qk_norm=1", "error": "no call of attention"})
    writer.close()
    assert "loss" in read_script_run(tmp_path, 0)
    with pytest.raises(ValueError, match="a remedy could not be applied to '--lr 1': no call of attention"):
        read_script_run(tmp_path / "again", 0, ["--lr", "1"])


def test_logits_from_before_the_norm_are_not_read(script, tmp_path, monkeypatch):
    def run(self, args, seed, folder, watch):
        record(folder, np.linspace(5, 1, 101))
        return 0

    monkeypatch.setattr(_Runs, "_run", run)
    plan = ScriptPlan(script, ("{lr}",), {})
    read = {spec: _Runs(with_remedy(plan, spec), tmp_path / spec)(0.1, 0, None) for spec in ("z_loss", "qk_norm")}
    assert LOGIT in read["z_loss"]
    assert LOGIT not in read["qk_norm"]


def test_nothing_is_claimed_without_evidence(plan):
    none = script_report(plan, {"": power_law(signal=None, failing=0.0)}, 4.0, "").summary
    assert none == "No stable learning rate between 0.001 and 0.1 (decided by width 10)."
    few = script_report(plan, {"": power_law(sizes=(10, 20))}, 4.0, "").summary
    assert few.startswith("Stable up to lr 0.1, the end of the grid.")
    assert "at least three sizes" in few


def test_seeds_that_change_nothing_are_noticed(plan):
    result = power_law()
    same = [SweepPoint(p.lr, p.size, p.seed, 1.0, 4.0, p.signals) for p in result.points]
    report = script_report(plan, {"": SweepResult(result.lrs, result.sizes, result.seeds, tuple(same))}, 4.0, "")
    assert "The seeds change nothing" in json.dumps(report.to_dict())


TRAIN = """
import argparse, os, time
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
args = parser.parse_args()
torch.manual_seed(0)
x = torch.randn(64, 4)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), args.lr)
for step in range(40):
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    while args.lr < 1 and step == 20 and not os.path.exists("go"):
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_an_unmodified_script_is_swept_interrupted_and_taken_up_again(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    points = tmp_path / "out" / "untreated" / "points.jsonl"
    command = [sys.executable, "-m", "poise", "preflight", "train.py", "--lr", "0.1,30", "--seeds", "1", "--out", "out"]
    command += ["--json", "--", "--lr", "{lr}"]
    first = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while first.poll() is None and not points.exists():
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate()
    assert first.returncode == 130, stderr
    assert "1 of 2 runs are kept in out/untreated. The same command continues there." in stderr
    diverged = points.read_text()
    assert json.loads(diverged)["lr"] == 30.0
    (tmp_path / "go").write_text("")
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["verdict"] == "stable up to lr 0.1"
    assert second.stderr.strip().endswith("out/report.html")
    assert points.read_text().startswith(diverged)
    assert len(points.read_text().splitlines()) == 2
