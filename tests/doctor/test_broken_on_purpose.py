"""Unusual scripts, places, ends and files. Weights and exit codes stay; errors are reported."""

import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from poise.store import read_run

pytestmark = pytest.mark.slow

TRAIN = """
import os, sys
import torch
from torch import nn
torch.manual_seed(0)
def make():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = make()
x = torch.randn(256, 4)
y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
def train(steps=20, model=model, optimizer=optimizer, generator=None):
    for step in range(steps):
        i = torch.randint(256, (32,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[i]), y[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss
def weights(*models):
    print([f"{p.double().sum().item():.17g}" for model in models for p in model.parameters()], flush=True)
"""

SCRIPTS = {
    "a fork that trains on": """
        train()
        child = os.fork()
        train(30)
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            weights(model)
        """,
    "Hogwild": """
        import torch.multiprocessing as mp
        model.share_memory()
        def work():
            train(15)
        if __name__ == "__main__":
            train(5)
            for method in ("fork", "spawn"):
                child = mp.get_context(method).Process(target=work)
                child.start()
                child.join()
                print(child.exitcode)
            weights(model)
        """,
    "loader workers": """
        data = torch.utils.data.TensorDataset(x, y)
        for a, b in torch.utils.data.DataLoader(data, batch_size=32, num_workers=2, multiprocessing_context="fork"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            optimizer.step()
        weights(model)
        """,
    "two models in two threads": """
        import threading
        pairs = [make(), make()]
        def work(seed, model, optimizer):
            generator = torch.Generator().manual_seed(seed)
            train(20, model, optimizer, generator)
        threads = [threading.Thread(target=work, args=(seed, *pair)) for seed, pair in enumerate(pairs)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        weights(*(model for model, _ in pairs))
        """,
    "a thread that goes on training": """
        import threading
        def work():
            train(20)
            weights(model)
        threading.Thread(target=work).start()
        """,
    "backward and step replaced": """
        backward, step = torch.Tensor.backward, torch.optim.AdamW.step
        def my_backward(self, *args, **kwargs):
            backward(self * 2, *args, **kwargs)
        def my_step(self, *args, **kwargs):
            counted.append(1)
            return step(self, *args, **kwargs)
        counted = []
        torch.Tensor.backward, torch.optim.AdamW.step = my_backward, my_step
        train()
        print(len(counted), torch.Tensor.backward is my_backward, torch.optim.AdamW.step is my_step)
        weights(model)
        """,
    "a model that is replaced": """
        train()
        model, optimizer = make()
        train(20, model, optimizer)
        weights(model)
        """,
    "weights that start as NaN": """
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        train()
        weights(model)
        """,
    "a changed folder": """
        os.mkdir("deep")
        os.chdir("deep")
        train()
        weights(model)
        """,
    "layers named like markup": """
        model.add_module("<script>alert(1)<|script>".replace("|", chr(8260)), nn.Linear(3, 3))
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        train()
        weights(model)
        """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_as_without_poise_and_leaves_one_report(name, poise, tmp_path):
    for folder in ("plain", "watched"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.py").write_text(TRAIN + textwrap.dedent(SCRIPTS[name]))
    plain = poise("train.py", cwd=tmp_path / "plain", plain=True)
    done = poise("run", "--out", "run", "train.py", cwd=tmp_path / "watched")
    assert plain.returncode == 0
    assert (done.stdout, done.returncode) == (plain.stdout, 0), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("report  run/report.html") == 1
    assert {p.name for p in (tmp_path / "watched" / "run").iterdir()} == {"run.db", "findings.json", "report.html"}
    assert "<script>alert" not in (tmp_path / "watched" / "run" / "report.html").read_text()
    record = read_run(tmp_path / "watched" / "run" / "run.db")
    steps = {"a fork that trains on": 50, "Hogwild": 5, "loader workers": 8}.get(name, 20)
    assert len(record["lr"]) == steps


HINTS = {
    "by hand": (
        "for _ in range(3):\n    model(x).sum().backward()\n"
        "    [p.data.sub_(0.1 * p.grad) for p in model.parameters()]\n",
        ["3 backward passes", "updated by hand", "subclass of torch.optim.Optimizer"],
    ),
    "an optimizer that is none": (
        "class Plain:\n    def step(self):\n        [p.data.sub_(0.1 * p.grad) for p in model.parameters()]\n"
        "model(x).sum().backward()\nPlain().step()\n",
        ["1 backward pass,", "optimizer of another class"],
    ),
    "in a child": (
        "import subprocess\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.8: pass'])\n",
        ["0 backward passes", "s of CPU time", "torchrun --nproc-per-node=N -m poise run train.py", "poise.watch("],
    ),
}


@pytest.mark.parametrize("name", HINTS)
def test_a_script_without_an_optimizer_step_is_told_what_to_do(name, poise, tmp_path):
    script, hints = HINTS[name]
    (tmp_path / "train.py").write_text(TRAIN + script)
    done = poise("run", "--out", "run", "train.py", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stderr.strip().splitlines()) == 1  # a log file has no width
    for hint in hints:
        assert hint in done.stderr


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("--nproc_per_node", 2, "train.py", "a"), "torchrun --nproc_per_node 2 -m poise run train.py a"),
        (("--standalone", "-m", "pkg.main", "a"), "torchrun --standalone -m poise run -m pkg.main a"),
    ],
)
def test_a_launcher_is_told_to_launch_poise(arguments, command, monkeypatch):
    from poise.cli.launch_hint import launch_hint
    from poise.doctor import Script

    assert launch_hint(Script("torch.distributed.run", list(map(str, arguments)), module=True)).endswith(command)
    assert launch_hint(Script("pkg.torchrun", [], module=True)) == ""


def test_a_launcher_runs_all_the_same(poise, tmp_path):
    (tmp_path / "train.py").write_text("import os\nprint('rank', os.environ['RANK'])\n")
    done = poise("run", "--out", "run", "-m", "torch.distributed.run", "--standalone", "train.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "rank 0\n"), done.stderr
    assert done.stderr.startswith("poise: torch.distributed.run trains in processes of its own")
    assert "Launch it as: torchrun --standalone -m poise run train.py\n" in done.stderr


# ---- places --------------------------------------------------------------------------------------------------------


def test_places_that_are_none(poise, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN + "train(3)\nweights(model)\n")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for arguments, message in {
        ("run", "nowhere/train.py"): "script 'nowhere/train.py' does not exist",
        ("run", "folder"): "script 'folder' is a folder without a __main__.py",
    }.items():
        done = poise(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    # Where nothing can be written (here: below a file), the run is recorded elsewhere.
    done = poise("run", "--out", "file/run", "train.py", cwd=tmp_path)
    assert done.returncode == 0
    elsewhere = Path(re.search(r"recording to (\S+) instead", done.stderr)[1])
    assert (elsewhere / "report.html").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["file", "folder", "train.py"]


def test_a_second_run_into_one_folder_touches_nothing(poise, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN + "train(3)\nprint('trained')\n")
    assert poise("run", "--out", "a run/ü", "train.py", cwd=tmp_path).returncode == 0
    before = (tmp_path / "a run" / "ü" / "run.db").read_bytes()
    done = poise("run", "--out", "a run/ü", "train.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "poise: error: a run/ü already holds a run; choose another folder, or remove a run/ü/run.db\n"
    assert (tmp_path / "a run" / "ü" / "run.db").read_bytes() == before


def test_a_disk_that_fills_up_costs_the_record_and_not_the_run(poise, tmp_path):
    full = """
        import resource
        train(20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))
        train(300)
        weights(model)
        """
    (tmp_path / "train.py").write_text(TRAIN + textwrap.dedent(full))
    (tmp_path / "plain.py").write_text(TRAIN + "train(20)\ntrain(300)\nweights(model)\n")
    done = poise("run", "--out", "run", "train.py", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == poise("plain.py", cwd=tmp_path, plain=True).stdout
    assert "Traceback" not in done.stderr
    assert "poise: the record is incomplete (cannot write run file run/run.db: " in done.stderr
    assert "poise: no report (" in done.stderr
    assert "; the run is in run/run.db\n" in done.stderr
    assert "report  run" not in done.stderr
    assert "nothing wrong found" not in done.stderr


def test_a_script_and_arguments_named_like_markup(poise, tmp_path):
    name = "<script>alert(1)<script>.py"
    (tmp_path / name).write_text(TRAIN + "train(3)\nraise ValueError('<script>alert(2)')\n")
    done = poise("run", "--out", "run", name, "<script>alert(3)", "[red]", cwd=tmp_path)
    assert done.returncode == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert(" not in page
    assert "alert(1)" in page
    again = poise("report", "run", cwd=tmp_path)
    assert again.returncode == 0
    assert name in again.stdout


# ---- ends ----------------------------------------------------------------------------------------------------------


def started(tmp_path, script, *options):
    """Start a watched script in a process of its own, and wait until it is in the middle of its training."""
    (tmp_path / "train.py").write_text(TRAIN + script)
    process = subprocess.Popen(
        [sys.executable, "-m", "poise", "run", "--out", "run", *options, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "training\n"
    return process


FOREVER = "import time\ntrain(50)\nprint('training', flush=True)\nwhile True:\n    train(5)\n    time.sleep(0.02)\n"


def test_ctrl_c_twice_ends_at_once_and_keeps_what_was_recorded(tmp_path):
    # The second one comes while the report is written.
    slow = "import poise.doctor.session as s\n"
    slow += "def hang(*_):\n    print('reporting', flush=True)\n    time.sleep(60)\ns.diagnose = hang\n"
    process = started(tmp_path, "import time\n" + slow + FOREVER)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "reporting\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "poise: no report (interrupted); the run is in run/run.db" in stderr
    assert stderr.count("Traceback") == 1  # the script's own
    assert read_run(tmp_path / "run" / "run.db").last_step >= 50


def test_a_live_run_and_a_killed_one_are_reported(tmp_path, poise):
    process = started(tmp_path, FOREVER)
    live = poise("report", "run", cwd=tmp_path)
    process.kill()
    process.communicate()
    killed = poise("report", "run", cwd=tmp_path)
    for done in (live, killed):
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "report  run/report.html" in done.stdout
    assert json.loads((tmp_path / "run" / "findings.json").read_text()) == []
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()


def test_a_pipe_that_nobody_reads(tmp_path):
    script = TRAIN + "train(3)\nfor i in range(100_000):\n    print(i)\n"
    (tmp_path / "train.py").write_text(script)
    codes, errors = [], []
    for command in (["train.py"], ["-m", "poise", "run", "--out", "run", "train.py"]):
        process = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        process.stdout.close()
        errors.append(process.stderr.read())
        codes.append(process.wait())
    assert codes[0] == codes[1] == 120 or codes == [1, 1]
    assert errors[1].startswith(errors[0].split("Exception ignored")[0])
    assert (tmp_path / "run" / "report.html").exists()


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    """A recorded run with something in it to find."""
    folder = tmp_path_factory.mktemp("recorded")
    torch.manual_seed(0)
    from poise.doctor import watch

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, out=folder / "run", overhead=1.0):
        for _ in range(60):
            inputs = torch.randn(32, 4)
            torch.nn.functional.cross_entropy(model(inputs), inputs[:, :3].argmax(1)).backward()
            optimizer.step()
    return folder / "run" / "run.db"


def damaged(data: bytes, seed: int) -> bytes:
    chance = random.Random(seed)
    if seed % 4 == 0:
        return data[: chance.randrange(len(data))]
    out = bytearray(data)
    if seed % 4 == 1:  # a torn page
        start = chance.randrange(0, len(data), 4096)
        out[start : start + 4096] = bytes(4096)
    else:  # bits, some of them in what SQLite does not check
        for _ in range(1 if seed % 4 == 2 else 200):
            out[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(out)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_run_file_is_read_or_named(seed, run_file, tmp_path, monkeypatch, capsys):
    from poise.cli import app

    (tmp_path / "run.db").write_bytes(damaged(run_file.read_bytes(), seed))
    for arguments in (["report", str(tmp_path)], ["runs", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["poise", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
        output = capsys.readouterr()
        if end.value.code == 0:
            continue
        assert arguments[0] == "report"
        assert end.value.code == 2
        assert output.err.startswith("poise: error: ")
        assert "run.db" in output.err
        assert len(output.err.splitlines()) == 1


def test_a_file_of_another_version(run_file, poise, tmp_path):
    import sqlite3

    (tmp_path / "run.db").write_bytes(run_file.read_bytes())
    with sqlite3.connect(tmp_path / "run.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    done = poise("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "has format 99, written by a newer poise; this one reads up to" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_read_only_place_for_the_report(run_file, poise, tmp_path):
    done = poise("report", run_file, "--out", tmp_path / "nowhere" / "file" / "report.html", cwd=tmp_path)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    (tmp_path / "taken").touch()
    done = poise("report", run_file, "--out", tmp_path / "taken" / "report.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "taken" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_not_executed(poise, tmp_path):
    bad = {"weight": torch.ones(2), "extra": Payload(str(tmp_path / "executed"))}
    torch.save(bad, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(bad))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pt")
    for name in ("a.pt", "b.pt"):
        done = poise("fuse", name, "good.pt", "--out", "fused.pt", cwd=tmp_path)
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "executed").exists()
        assert not (tmp_path / "fused.pt").exists()


def test_a_run_of_many_tiny_steps_stays_small(tmp_path):
    # 3,000 here; by hand 100,000.
    from poise.doctor import watch

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sizes = []
    for steps in (1500, 3000):
        with watch(model, optimizer, out=tmp_path / str(steps)):
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(1, 1)).sum().backward()
                optimizer.step()
        sizes.append((tmp_path / str(steps) / "run.db").stat().st_size)
    assert sizes[1] - sizes[0] < 1500 * 200  # bytes for a step
