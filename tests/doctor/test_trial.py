"""The trial of remedies: outcome, verdict, resuming, stopping. Runs are made up, save in the tests marked slow."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from poise.doctor.remedies import parse_remedy
from poise.doctor.trial import (
    Arm,
    ArmResult,
    carry_out,
    final_loss,
    make_plan,
    stronger,
    trial,
)
from poise.doctor.trial.report import over_seeds, trial_report
from poise.report import Finding, Report
from poise.store import Record, RunWriter, Series

STEPS = 60


def falling(end, start=4.0, steps=STEPS):
    return end + (start - end) * np.exp(-np.arange(steps) / 8)


def noisy(end, seed, **kwargs):
    curve = falling(end, **kwargs)
    noise = np.random.default_rng(seed).normal(0, 0.03, len(curve))
    noise[0] = 0.0
    return curve + noise


def exploding(seed):
    return np.concatenate([noisy(2.0, seed, steps=20), np.full(STEPS - 20, 30.0 + seed)])


def write_run(folder, losses, findings=(), attention=None, events=(), meta=None):
    (folder / "run").mkdir()
    writer = RunWriter(folder / "run" / "run.db", meta=meta or {})
    group = writer.group(["loss"])
    for step, loss in enumerate(losses):
        group.append(step, [loss])
    if attention is not None:
        logits = writer.group(["attention_logit_max[a]", "attention_logit_max[b]"])
        for step in range(0, len(losses), 5):
            logits.append(step, [attention[step], attention[step] / 2])
    for step, kind, payload in events:
        writer.event(step, kind, payload)
    writer.close()
    (folder / "run" / "findings.json").write_text(json.dumps([f.to_dict() for f in findings]))


class Made:
    """A runner that writes the losses it was given: ``arms[name](seed)`` is losses, or (losses, exit code)."""

    def __init__(self, arms, **run):
        self.arms, self.run, self.ran = arms, run, []

    def __call__(self, arm, folder):
        self.ran.append((arm.name, arm.seed))
        made = self.arms[arm.name](arm.seed)
        losses, exit_code = made if isinstance(made, tuple) else (made, 0)
        write_run(folder, losses, **self.run)
        (folder / "stderr.txt").write_text("Traceback\nValueError: no more data\n" if exit_code else "")
        return exit_code


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("print('training')\n")
    return path


def made_trial(script, arms, remedies=("lr_scale=0.3",), seeds=3, steps=None, progress=None, **run):
    plan = make_plan(script, ["--depth", "2"], list(remedies), seeds, steps=steps)
    return carry_out(plan, script.parent / "out", Made(arms, **run), n_jobs=2, progress=progress)


# ---- verdicts ------------------------------------------------------------------------------------------------------


def test_a_remedy_that_lowers_the_loss_on_every_seed_is_proved(script):
    result = made_trial(script, {"untreated": lambda s: noisy(2.0, s), "lr_scale=0.3": lambda s: noisy(1.0, s + 9)})
    (comparison,) = result.comparisons
    assert comparison.verdict == "proved"
    assert comparison.losses.n == 3
    assert comparison.losses.difference == pytest.approx(-1.0, abs=0.05)
    assert comparison.steps == STEPS
    assert result.best is comparison
    assert result.notices == []


def test_equal_arms_have_no_effect_and_worse_ones_hurt(script):
    arms = {
        "untreated": lambda s: noisy(1.0, s),
        "beta2=0.95": lambda s: noisy(1.0, s + 10),
        "warmup=10": lambda s: noisy(1.3, s + 20),
    }
    result = made_trial(script, arms, ["beta2=0.95", "warmup=10"])
    assert [c.verdict for c in result.comparisons] == ["no effect", "hurts"]
    assert result.best is None
    assert "No remedy helped" in trial_report(result).summary


def test_a_remedy_that_only_slows_down_is_charged_for_it(script):
    # Both would reach 1.0 in the end; after 60 steps the slow one is not there yet.
    slow = 1.0 + 3.0 * np.exp(-np.arange(STEPS) / 40)
    result = made_trial(
        script,
        {"untreated": lambda s: noisy(1.0, s), "lr_scale=0.3": lambda s: slow + noisy(0, s, start=0)},
    )
    assert result.comparisons[0].verdict == "hurts"


def test_fewer_divergences_count_and_a_diverged_run_counts_as_its_first_loss(script):
    arms = {"untreated": exploding, "logit_soft_cap=30": lambda s: noisy(1.5, s)}
    (comparison,) = made_trial(script, arms, ["logit-soft-cap"]).comparisons
    assert (comparison.divergences.events_a, comparison.divergences.events_b) == (3, 0)
    assert comparison.losses.mean_control == pytest.approx(4.0)
    assert comparison.verdict == "proved"


def test_non_finite_ends_and_runs_that_break_off_count_as_their_first_loss(script):
    def untreated(seed):
        losses = noisy(1.0, seed)
        if seed == 0:
            losses[30:] = np.nan
            return losses
        return (losses[:25], 1)

    result = made_trial(script, {"untreated": untreated, "warmup=10": lambda s: noisy(1.5, s)}, ["warmup=10"])
    (comparison,) = result.comparisons
    assert comparison.steps == STEPS
    assert comparison.losses.mean_control == pytest.approx(4.0)
    assert comparison.divergences.events_a == 3
    assert comparison.verdict == "proved"
    assert len(result.notices) == 2
    assert result.notices[0] == "untreated, seed 1, ended with exit code 1: ValueError: no more data"


def test_a_run_that_stops_early_without_error_is_compared_at_its_length(script):
    def patient(seed):
        return noisy(1.0, seed)[:20]

    (comparison,) = made_trial(
        script, {"untreated": lambda s: noisy(1.0, s), "warmup=10": patient}, ["warmup=10"]
    ).comparisons
    assert comparison.steps == 20
    assert comparison.losses.mean_control == pytest.approx(comparison.losses.mean_treated)
    assert comparison.verdict == "no effect"


def test_an_error_after_the_last_step_in_every_run_does_not_spoil_the_comparison(script):
    arms = {"untreated": lambda s: (noisy(2.0, s), 3), "warmup=10": lambda s: (noisy(1.0, s + 9), 3)}
    (comparison,) = made_trial(script, arms, ["warmup=10"]).comparisons
    assert comparison.verdict == "proved"
    assert comparison.divergences.events_a == 0


def test_steps_bounds_what_is_compared(script):
    late = np.concatenate([falling(1.0)[:30], np.full(30, 9.0)])
    arms = {"untreated": lambda s: noisy(1.0, s), "warmup=10": lambda s: late + noisy(0, s, start=0)}
    (early,) = made_trial(script, arms, ["warmup=10"], steps=30).comparisons
    assert early.steps == 30
    assert early.verdict == "no effect"
    assert early.divergences.events_b == 0


@pytest.mark.parametrize(
    ("loss", "divergences", "word"),
    [
        ("no effect", "proved", "proved"),
        ("helps, not proved", "no effect", "helps, not proved"),
        ("proved", "hurts", "hurts"),
        ("hurts", "proved", "hurts"),
        ("no effect", "no effect", "no effect"),
    ],
)
def test_the_stronger_word_wins_unless_there_is_harm(loss, divergences, word):
    assert stronger(loss, divergences) == word


def test_the_best_remedy_is_the_surest_then_the_largest(script):
    arms = {
        "untreated": lambda s: noisy(2.0, s),
        "warmup=10": lambda s: noisy(1.5, s + 10),
        "lr_scale=0.3+beta2=0.95": lambda s: noisy(1.2, s + 20),
        "z_loss=0.0001": lambda s: noisy(0.9, s) if s else noisy(1.8, s),
    }
    result = made_trial(script, arms, ["warmup=10", ["lr_scale=0.3", "beta2=0.95"], "z_loss"])
    assert [c.verdict for c in result.comparisons][:2] == ["proved", "proved"]
    assert result.best.remedies == ("lr_scale=0.3", "beta2=0.95")
    assert [c.name for c in result.ranked] == ["lr_scale=0.3+beta2=0.95", "warmup=10", "z_loss=0.0001"]


def test_final_loss_is_the_mean_of_the_last_tenth_but_at_least_five_steps():
    values = np.arange(100, 0, -1.0)
    result = ArmResult(Arm((), 0), Path(), 0, "", Record.from_arrays({"loss": (np.arange(100), values)}), ())
    assert final_loss(result, 100, 100.0) == np.mean(values[90:])
    assert final_loss(result, 20, 100.0) == np.mean(values[15:20])
    assert final_loss(result, 3, 100.0) == np.mean(values[:3])
    assert final_loss(result, 3, 98.5) == 98.5


# ---- what limits a trial -------------------------------------------------------------------------------------------


def test_seeds_that_change_nothing_are_one_run(script):
    result = made_trial(script, {"untreated": lambda s: falling(2.0), "lr_scale=0.3": lambda s: falling(1.0)})
    (comparison,) = result.comparisons
    assert comparison.losses.n == 1
    assert comparison.divergences.n_a == 1
    assert comparison.verdict == "helps, not proved"
    assert result.notices[0].startswith("The seeds change nothing")


def test_runs_that_never_trained_give_no_verdict_but_their_error(script):
    result = made_trial(script, {"untreated": lambda s: ([], 1), "lr_scale=0.3": lambda s: noisy(1.0, s)})
    (comparison,) = result.comparisons
    assert comparison.verdict is None
    assert "no untreated run recorded a loss" in comparison.sentence
    assert "ValueError: no more data" in comparison.sentence
    report = trial_report(result)
    assert report.verdict is None
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))).title == report.title


def test_a_run_without_a_file_is_named(script):
    plan = make_plan(script, [], ["warmup=10"], 1)

    def runner(arm, folder):
        (folder / "stderr.txt").write_text("poise: no such option\n")
        return 2

    result = carry_out(plan, script.parent / "out", runner, 1)
    assert result.comparisons[0].verdict is None
    assert result.notices[0].endswith("exit code 2: poise: no such option")


def test_a_remedy_that_was_dropped_gives_no_verdict(script):
    arms = {"untreated": lambda s: noisy(2.0, s), "beta2=0.95": lambda s: noisy(1.0, s)}
    events = [(0, "remedy_failed", {"error": "sparse gradients"})]
    (comparison,) = made_trial(script, arms, ["beta2=0.95"], events=events).comparisons
    assert comparison.verdict is None
    assert "could not be applied (sparse gradients)" in comparison.sentence


def test_what_remedies_noted_is_told(script):
    arms = {"untreated": lambda s: noisy(2.0, s), "beta2=0.95": lambda s: noisy(1.0, s)}
    result = made_trial(script, arms, ["beta2=0.95"], seeds=1, meta={"notes": ["SGD has no betas"]})
    assert "beta2=0.95, seed 0: SGD has no betas." in result.notices


def test_several_optimizers_are_told(script):
    arms = {"untreated": lambda s: noisy(2.0, s), "beta2=0.95": lambda s: noisy(1.0, s)}
    events = [(0, "optimizer", {"timeline": "opt1/", "class": "Adam", "groups": []})]
    result = made_trial(script, arms, ["beta2=0.95"], events=events)
    assert "several optimizers" in result.notices[-1]


# ---- running, resuming, stopping -----------------------------------------------------------------------------------


def test_progress_counts_every_run_once(script):
    seen = []
    arms = {"untreated": lambda s: noisy(2.0, s), "warmup=10": lambda s: noisy(1.0, s)}
    made_trial(script, arms, ["warmup=10"], progress=lambda done, total, run: seen.append((done, total, run.arm)))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    assert len({arm for _, _, arm in seen}) == 6


def test_finished_runs_are_taken_over_and_changed_ones_are_not(script):
    arms = {
        "untreated": lambda s: noisy(2.0, s),
        "warmup=10": lambda s: noisy(1.0, s),
        "beta2=0.95": lambda s: noisy(3, s),
    }
    out = script.parent / "out"

    def ran(remedies, args=("a",), seeds=2):
        runner = Made(arms)
        result = carry_out(make_plan(script, list(args), remedies, seeds), out, runner, 1)
        return runner.ran, result

    first, before = ran(["warmup=10"])
    assert len(first) == 4
    again, after = ran(["warmup=10"])
    assert again == []
    assert after.comparisons == before.comparisons
    more, _ = ran(["warmup=10", "beta2=0.95"], seeds=3)
    assert sorted(more) == sorted([("untreated", 2), ("warmup=10", 2), *[("beta2=0.95", s) for s in range(3)]])
    assert len(ran(["warmup=10"], args=("b",))[0]) == 4
    script.write_text("print('training differently')\n")
    assert len(ran(["warmup=10"], args=("b",))[0]) == 4


def test_a_trial_that_is_forwarded_holds_no_secret_and_runs_again_if_one_changes(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    arms = {"untreated": lambda s: (noisy(2.0, s), s), "warmup=10": lambda s: noisy(1.0, s)}

    def ran(key, keep_args=False):
        runner = Made(arms)
        plan = make_plan(script, ["--api-key", key], ["warmup=10"], 2, keep_args=keep_args)
        result = carry_out(plan, Path("out"), runner, 1)
        trial_report(result).save("out/report.html")
        text = json.dumps(result.to_dict()) + "".join(
            p.read_text() for p in Path("out").rglob("*") if p.suffix in (".html", ".json")
        )
        return len(runner.ran), text

    runs, text = ran("sk-first")
    assert runs == 4
    assert "***" in text
    for secret in ("sk-first", str(script.parent)):
        assert secret not in text
    assert ran("sk-first")[0] == 0
    assert ran("sk-second")[0] == 4
    assert "sk-second" in ran("sk-second", keep_args=True)[1]


def test_a_run_that_was_cut_short_is_run_again_and_a_failed_one_is_not(script):
    fates = {"untreated": 0, "warmup=10": -9}
    arms = {name: (lambda s, code=code: (noisy(1.0, s), code)) for name, code in fates.items()}
    plan = make_plan(script, [], ["warmup=10"], 1)
    out = script.parent / "out"
    carry_out(plan, out, Made(arms), 1)
    runner = Made({**arms, "warmup=10": lambda s: (noisy(1.0, s), 1)})
    carry_out(plan, out, runner, 1)
    assert runner.ran == [("warmup=10", 0)]
    runner.ran.clear()
    carry_out(plan, out, runner, 1)
    assert runner.ran == []
    (out / "untreated" / "seed-0" / "arm.json").write_text("{")  # the disk was full
    with pytest.raises(FileExistsError, match="seed-0' holds something else"):
        carry_out(plan, out, runner, 1)


def test_an_interrupt_keeps_what_is_finished(script):
    def runner(arm, folder):
        if arm.remedies:
            raise KeyboardInterrupt
        return Made({"untreated": lambda s: noisy(1.0, s)})(arm, folder)

    plan = make_plan(script, [], ["warmup=10"], 2)
    out = script.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, out, runner, 1)
    resumed = Made({"warmup=10": lambda s: noisy(0.5, s)})
    assert len(carry_out(plan, out, resumed, 1).arms) == 4
    assert sorted(resumed.ran) == [("warmup=10", 0), ("warmup=10", 1)]


def test_folders_of_others_are_left_alone(script):
    folder = script.parent / "out" / "untreated" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        made_trial(script, {}, ["warmup=10"], seeds=1)
    assert (folder / "thesis.tex").read_text() == "precious"


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_theirs(tmp_path):
    # A trial in a process of its own; its runs write their ids and then wait for long.
    (tmp_path / "train.py").write_text("")
    program = f"""
        import sys
        from functools import partial
        from pathlib import Path
        from poise.doctor.trial import carry_out, make_plan
        from poise.tools.child_process import ChildProcesses

        wait = (
            "import os, subprocess, sys, time;"
            "k = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
            "open('ids', 'w').write(f'{{os.getpid()}} {{k.pid}}'); os.rename('ids', 'ready'); time.sleep(60)"
        )
        plan = make_plan({str(tmp_path / "train.py")!r}, [], ["warmup=10"], 1)
        with ChildProcesses() as children:
            def runner(arm, folder):
                return children.run([sys.executable, "-c", wait], folder)
            carry_out(plan, Path("out"), runner, 1)
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    main = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, stderr=subprocess.PIPE, env=environment
    )
    ready = tmp_path / "ready"
    try:
        for _ in range(600):
            if ready.exists():
                break
            time.sleep(0.05)
        ids = [int(word) for word in ready.read_text().split()]
        main.send_signal(signal.SIGINT)
        _, errors = main.communicate(timeout=20)
    finally:
        main.kill()
    assert b"KeyboardInterrupt" in errors
    deadline = time.monotonic() + 5
    while any(map(_alive, ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, ids))
    assert json.loads((tmp_path / "out/untreated/seed-0/arm.json").read_text())["exit_code"] is None


def _alive(pid):
    try:
        # An orphan that has ended stays as a zombie where nobody reaps it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- asking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"script": "nowhere.py"}, FileNotFoundError, "script must be a file, .* got 'nowhere.py'"),
        ({"script": "no.such.module", "module": True}, ModuleNotFoundError, "got 'no.such.module'"),
        ({"remedies": []}, ValueError, "at least one remedy"),
        ({"remedies": "warmup"}, ValueError, "must be a list"),
        ({"remedies": ["warmp"]}, ValueError, "did you mean warmup"),
        ({"remedies": ["warmup", "warmup=100"]}, ValueError, "warmup=100 more than once"),
        ({"remedies": [[]]}, ValueError, "not empty"),
        ({"seeds": 0}, ValueError, "seeds must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number"),
    ],
)
def test_bad_requests_are_named_before_anything_runs(script, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        trial(**{"script": script, "remedies": ["warmup"], "out": tmp_path / "out", **change})
    assert not (tmp_path / "out").exists()


def test_a_module_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "pkg" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "__main__.py").write_text("1")
    (package / "job.py").write_text("2")
    monkeypatch.chdir(tmp_path)
    job = make_plan("pkg.inner.job", [], ["warmup"], 1, module=True)
    main = make_plan("pkg.inner", [], ["warmup"], 1, module=True)
    assert job.sha256 != main.sha256
    with pytest.raises(ModuleNotFoundError, match="package with a __main__, got 'pkg'"):
        make_plan("pkg", [], ["warmup"], 1, module=True)


def test_the_command_of_an_arm(tmp_path, script):
    from poise.doctor.trial.runs import run_script

    class Told:
        def run(self, command, folder):
            self.command = command
            return 0

    told = Told()
    plan = make_plan(script, ["--remedy", "mine"], [["lr_scale", "warmup=5"]], 1)
    run_script(told, plan, Arm(("lr_scale=0.3", "warmup=5"), 4), tmp_path)
    assert told.command == [
        *[sys.executable, "-m", "poise", "run", "--quiet", "--json", "--seed", "4", "--out", str(tmp_path / "run")],
        *["--remedy", "lr_scale=0.3", "--remedy", "warmup=5", str(script), "--remedy", "mine"],
    ]


# ---- the report ----------------------------------------------------------------------------------------------------


def test_the_report_shows_both_losses_the_logits_the_verdict_and_the_code(script, tmp_path):
    finding = Finding("attention_logit_growth", "error", 0.9, "Attention logits grow.", onset_step=12)
    result = made_trial(
        script,
        {"untreated": exploding, "logit_soft_cap=30": lambda s: noisy(1.5, s), "warmup=10": exploding},
        ["logit_soft_cap", "warmup=10"],
        attention=10.0 ** np.linspace(0, 4, STEPS),
        findings=[finding],
    )
    report = trial_report(result)
    assert report.verdict == "proved: logit_soft_cap=30"
    assert report.findings == [finding]
    figures = [block for block in report.blocks if block.kind == "figure"]
    assert [figure.title for figure in figures] == ["Loss", "Largest attention logit"]
    names = {trace.name for trace in figures[1].figure.data}
    assert {"untreated", "logit_soft_cap=30"} <= names
    assert figures[1].figure.layout.yaxis.type == "log"
    code = next(block for block in report.blocks if block.kind == "code")
    assert code.code.strip() == parse_remedy("logit_soft_cap").code().strip()
    table = next(block for block in report.blocks if block.kind == "table")
    assert [row[0] for row in table.rows] == ["logit_soft_cap=30", "warmup=10"]
    assert table.rows[0][1] == "proved"
    assert table.rows[0][4] == "3 → 0 of 3"
    html = report.save(tmp_path / "trial.html").read_text()
    assert "logit_soft_cap=30" in html
    json.dumps(result.to_dict(), allow_nan=False)


def test_to_dict_is_json_even_with_one_seed(script):
    arms = {"untreated": lambda s: falling(2.0), "warmup=10": lambda s: falling(1.0)}
    result = made_trial(script, arms, ["warmup=10"], seeds=1)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["best"] == "warmup=10"
    assert trial_report(result).verdict == "helps, not proved: warmup=10"


def test_over_seeds_aligns_curves_that_were_sampled_at_different_steps():
    a = Series(np.array([0, 2, 4]), np.array([1.0, 3.0, np.inf]))
    b = Series(np.array([1, 2]), np.array([5.0, 7.0]))
    steps, middle, low, high = over_seeds([a, b])
    np.testing.assert_array_equal(steps, [0, 1, 2, 4])
    np.testing.assert_array_equal(middle, [1, 3, 5, np.nan])
    np.testing.assert_array_equal(low, [1, 1, 3, np.nan])
    np.testing.assert_array_equal(high, [1, 5, 7, np.nan])
    assert len(over_seeds([])[0]) == 0


# ---- with the real command line ------------------------------------------------------------------------------------

SCRIPT = """
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
x = torch.randn(256, 8)
y = x @ torch.randn(8, 1)
for step in range(80):
    rows = torch.randint(256, (32,))
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_real_trial_end_to_end(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    started = time.time()
    result = trial(script, remedies=["lr_scale=0.01", "adam_eps=1e-9"], seeds=3, out=tmp_path / "out")
    verdicts = {c.name: c.verdict for c in result.comparisons}
    assert verdicts == {"lr_scale=0.01": "proved", "adam_eps=1e-09": "no effect"}
    assert all(run.exit_code == 0 and run.steps == 80 for run in result.arms)
    for plain, treated in zip(result.runs(), result.runs(["adam_eps=1e-09"]), strict=True):
        np.testing.assert_array_equal(plain.record["loss"].values, treated.record["loss"].values)
    assert any("SGD has no eps" in notice for notice in result.notices)
    first = time.time() - started
    again = trial(script, remedies=["lr_scale=0.01", "adam_eps=1e-9"], seeds=3, out=tmp_path / "out")
    assert time.time() - started < 1.5 * first + 2
    assert again.comparisons == result.comparisons
    assert trial_report(result).save(tmp_path / "trial.html").stat().st_size > 10_000
