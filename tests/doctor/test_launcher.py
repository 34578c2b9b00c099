"""A script runs under `poise run` as it runs under Python."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

TRAIN = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x = torch.randn(256, 4)
y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
def train(steps=40):
    for step in range(steps):
        i = torch.randint(256, (32,))
        loss = nn.functional.cross_entropy(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss
"""


def python(*arguments, cwd, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=environment, **options
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.slow
def test_output_arguments_and_parameters_are_those_of_python(tmp_path):
    tail = """
    import sys, pickle
    if __name__ == "__main__":
        print("arguments", sys.argv, "--out" in sys.argv, __file__ is not None, __spec__)
        print("path", sys.path[0])
        print("loss", train().item())
        print("pickled", pickle.loads(pickle.dumps(Thing())).__class__.__module__)
        torch.save(model.state_dict(), sys.argv[2])
    """
    cls = "\nclass Thing:\n    pass\n"
    script = write(tmp_path / "deep" / "train.py", TRAIN + cls + textwrap.dedent(tail))
    plain = python(script, "--lr", "a.pt", "--out", "x", cwd=tmp_path)
    watched = python("-m", "poise", "run", "--out", "run", script, "--lr", "b.pt", "--out", "x", cwd=tmp_path)
    assert plain.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout == plain.stdout.replace("a.pt", "b.pt")
    import torch

    a, b = torch.load(tmp_path / "a.pt"), torch.load(tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.db", "findings.json", "report.html"}
    assert "nothing wrong found" in watched.stderr
    assert "watching added" in watched.stderr
    assert watched.stderr.rstrip().endswith("run/report.html")


@pytest.mark.slow
def test_a_module_with_relative_imports(tmp_path, poise):
    write(tmp_path / "pkg" / "__init__.py", "")
    write(tmp_path / "pkg" / "parts.py", TRAIN)
    write(
        tmp_path / "pkg" / "main.py", "import sys\nfrom .parts import train\ntrain()\nprint(sys.argv[1:], __name__)\n"
    )
    done = poise("run", "-m", "--out", "run", "pkg.main", "a", "-b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a', '-b'] __main__\n"
    assert (tmp_path / "run" / "report.html").exists()


ENDINGS = {
    "sys.exit(7)": 7,
    "sys.exit()": 0,
    "sys.exit('sorry')": 1,
    "raise SystemExit(256 + 3)": 3,
    "1 / 0": 1,
    "os._exit(5)": 5,
    "os.kill(os.getpid(), signal.SIGINT)": -2,
    "os.kill(os.getpid(), signal.SIGTERM)": -15,
    "os.kill(os.getpid(), signal.SIGHUP)": -1,
    "sys.stdout.close(); sys.exit(7)": 7,
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_codes_and_reports(ending, tmp_path, poise):
    write(tmp_path / "train.py", TRAIN + f"import sys, os, signal\ntrain(12)\n{ending}\n")
    done = poise("run", "--out", "run", "train.py", cwd=tmp_path)
    assert done.returncode == ENDINGS[ending], done.stderr
    assert json.loads((tmp_path / "run" / "findings.json").read_text()) is not None
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()
    if ending == "1 / 0":
        plain = python("train.py", cwd=tmp_path)
        assert "ZeroDivisionError: division by zero" in done.stderr
        trace = [line for line in plain.stderr.splitlines() if line]
        assert done.stderr.splitlines()[: len(trace)] == trace
    assert "nothing wrong found" in done.stderr
    if ending == "sys.exit('sorry')":
        assert done.stderr.startswith("sorry\n")


@pytest.mark.slow
def test_check_turns_an_error_into_exit_code_3(tmp_path, poise):
    bad = TRAIN.replace("optimizer.zero_grad()", "pass")
    write(tmp_path / "train.py", bad + "train(80)\n")
    done = poise("run", "--check", "--json", "--out", "run", "train.py", cwd=tmp_path)
    findings = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert findings[0]["cause"] == "missing_zero_grad"
    assert findings[0]["severity"] == "error"
    assert done.returncode == 3
    assert json.loads(done.stderr) == findings
    keys = {"cause", "severity", "probability", "onset_step", "event_step", "where", "evidence", "remedies"}
    assert keys <= findings[0].keys()
    assert {"signal", "value", "threshold", "baseline"} <= findings[0]["evidence"][0].keys()


@pytest.mark.slow
def test_stop_on_ends_the_run(tmp_path, poise):
    bad = TRAIN.replace("optimizer.zero_grad()", "pass").replace("for step", "import time\n    for step")
    bad = bad.replace("optimizer.step()", "optimizer.step(); time.sleep(0.02)")
    write(tmp_path / "train.py", bad + "train(100000)\n")
    done = poise("run", "--stop-on", "error", "--out", "run", "train.py", cwd=tmp_path, timeout=120)
    assert done.returncode == 3
    assert "stopped the run" in done.stderr


@pytest.mark.slow
def test_a_killed_run_is_reported_afterwards(tmp_path, poise):
    write(tmp_path / "train.py", TRAIN + "import time\nwhile True:\n    train(5)\n    time.sleep(0.05)\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "poise", "run", "--out", "run", "train.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.time() + 90
    from poise.store import RunFileError, read_run

    def steps():
        try:
            return read_run(tmp_path / "run" / "run.db").last_step
        except RunFileError:
            return -1

    while steps() < 20 and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = poise("report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert steps() >= 20


@pytest.mark.slow
def test_a_script_that_never_trains(tmp_path, poise):
    write(tmp_path / "look.py", "import torch\nprint(torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape)\n")
    done = poise("run", "--out", "run", "look.py", cwd=tmp_path)
    assert done.returncode == 0
    assert "no optimizer step seen" in done.stderr
    assert "1 forward pass" in done.stderr
    assert json.loads((tmp_path / "run" / "findings.json").read_text()) == []


@pytest.mark.slow
def test_seed_option_moves_the_scripts_own_seed(tmp_path, poise):
    write(tmp_path / "train.py", TRAIN + "print(train(3).item())\n")
    outputs = [poise("run", "--seed", k, "-q", "--out", f"run{k}", "train.py", cwd=tmp_path).stdout for k in (0, 1)]
    assert outputs[0] == python("train.py", cwd=tmp_path).stdout
    assert outputs[0] != outputs[1]


@pytest.mark.slow
def test_what_the_user_gets_wrong_is_said_in_a_line(tmp_path, poise):
    write(tmp_path / "train.py", TRAIN)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.db").write_bytes(b"not a run file")
    cases = {
        ("run", "tran.py"): "script 'tran.py' does not exist; there are train.py",
        ("run", "--remedy", "lr-scal", "train.py"): "did you mean lr_scale",
        ("run", "--remedy", "lr_scale=-1", "train.py"): "value of remedy lr_scale must be",
        ("run", "--select", "attention", "train.py"): "attention_logit_growth",
        ("run", "--stop-on", "fatal", "train.py"): "stop_on must be one of info, warning, error",
        ("run", "--overhead", "7", "train.py"): "overhead must be a fraction in (0, 1]",
        ("run", "--out", "old", "train.py"): "old already holds a run",
        ("report", "old"): "run.db",
        ("report", "nowhere"): "nowhere",
        ("runs", "nowhere"): "'nowhere' does not exist",
        ("explain", "atention"): "attention_logit_growth",
        ("trial", "--remedy", "nope", "train.py"): "remedy 'nope' is unknown",
    }
    for arguments, message in cases.items():
        done = poise(*arguments, cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (tmp_path / "old" / "run.db").read_bytes() == b"not a run file"


@pytest.mark.slow
def test_no_command_waits_for_the_compiler_to_be_imported(tmp_path):
    import poise as package

    rooms = ", ".join(["cli", *package._ROOMS])
    code = f"import sys; from poise import {rooms}; print('torch._dynamo' in sys.modules)"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "False"


@pytest.mark.slow
def test_explain_runs_and_version(tmp_path, poise):
    shown = poise("explain", "attention-logit-growth", cwd=tmp_path).stdout
    for heading in ("What it is", "Why it hurts", "How it is detected", "What cures it", "References"):
        assert heading in shown
    assert "bad_batch" in poise("explain", cwd=tmp_path).stdout
    from poise import __version__

    assert poise("--version", cwd=tmp_path).stdout.strip() == __version__
