"""Full disks, unwritable places, forks and sudden death."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from poise.store import RunWriter, StoreError, read_run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX systems")


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"cannot create run file .*nowhere.*No such file or directory"):
        RunWriter(tmp_path / "nowhere" / "run.db")


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        RunWriter(tmp_path / "file" / "run.db")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            RunWriter(tmp_path / "run.db")
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_too_small_for_an_empty_file_leaves_nothing_behind(tmp_path):
    code = """
    import resource, sys
    from poise.store import RunWriter, StoreError
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    try:
        RunWriter(sys.argv[1])
    except StoreError as error:
        print(error)
    """
    done = run_python(code, tmp_path / "run.db")
    assert "cannot create run file" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_sets_the_fault_and_keeps_what_was_written(tmp_path):
    # A limit on the size of files is the full disk that needs no privileges.
    code = """
    import resource, sys
    import numpy as np
    from poise.store import RunWriter
    writer = RunWriter(sys.argv[1])
    group = writer.group([f"s{i}" for i in range(200)])
    group.append(0, np.ones(200))
    writer.flush()
    assert writer.fault is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    for step in range(1, 3000):
        group.append(step, np.ones(200))
        if step % 100 == 0:
            writer.flush()
    writer.event(3000, "late", {})
    writer.group(["new"]).append(0, [1.0])
    print(repr(writer.fault))
    writer.close()
    print("the training ended")
    """
    done = run_python(code, tmp_path / "run.db")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "StoreError" in done.stdout
    assert "cannot write run file" in done.stdout
    assert done.stdout.endswith("the training ended\n")
    series = read_run(tmp_path / "run.db")["s7"]
    np.testing.assert_array_equal(series.steps, np.arange(len(series)))
    assert 1 <= len(series) < 3000


def test_a_file_that_vanishes_under_the_writer_never_raises(tmp_path):
    writer = RunWriter(tmp_path / "run.db")
    group = writer.group(["x"])
    group.append(0, [1.0])
    writer.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    group.append(1, [1.0])
    writer.flush()
    writer.close()
    with pytest.raises(StoreError, match="does not exist"):
        read_run(tmp_path / "run.db")


def test_forked_children_never_write_and_the_parent_goes_on(tmp_path):
    path = tmp_path / "run.db"
    writer = RunWriter(path)
    group = writer.group(["x"])
    for step in range(20):
        group.append(step, [step])
        child = os.fork()
        if child == 0:
            group.append(1000 + step, [0.0])
            writer.event(1000, "child", {})
            writer.group(["child"]).append(0, [0.0])
            writer.flush()
            writer.close()
            os._exit(0 if writer.fault is None else 1)
        assert os.waitpid(child, 0)[1] == 0
    writer.close()
    record = read_run(path)
    assert record.names == ["x"]
    assert record["x"].steps.tolist() == list(range(20))
    assert record.events() == []


def test_a_forked_child_that_ends_like_a_script_leaves_the_file_alone(tmp_path):
    code = """
    import os, sys, time
    from poise.store import RunWriter
    writer = RunWriter(sys.argv[1])
    group = writer.group(["x"])
    group.append(0, [0.0])
    writer.flush()
    child = os.fork()
    if child == 0:
        group.append(1, [9.0])
        own = RunWriter(sys.argv[1] + ".child")  # a child may write a file of its own
        own.group(["y"]).append(0, [2.0])
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    group.append(2, [2.0])
    os.kill(os.getpid(), 9) if "die" in sys.argv else writer.close()
    """
    done = run_python(code, tmp_path / "run.db")
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "run.db")["x"].steps.tolist() == [0, 2]
    assert read_run(tmp_path / "run.db.child")["y"].values.tolist() == [2.0]
    assert run_python(code, tmp_path / "second.db", "die").returncode == -signal.SIGKILL
    assert read_run(tmp_path / "second.db")["x"].steps.tolist()[0] == 0


def test_loader_workers_do_not_disturb(tmp_path):
    from torch.utils.data import DataLoader

    with RunWriter(tmp_path / "run.db") as writer:
        group = writer.group(["x"])
        for step, _ in enumerate(DataLoader(range(8), batch_size=2, num_workers=2, multiprocessing_context="fork")):
            group.append(step, [step])
    assert read_run(tmp_path / "run.db")["x"].steps.tolist() == [0, 1, 2, 3]


def test_closing_in_a_signal_handler_does_not_hang(tmp_path):
    code = """
    import os, signal, sys, threading
    from poise.store import RunWriter
    writer = RunWriter(sys.argv[1])
    group = writer.group(["x"])
    def stop(number, frame):
        writer.close()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    step = 0
    while True:
        group.append(step, [step])
        step += 1
        if step % 1000 == 0:
            writer.flush()
    """
    done = run_python(code, tmp_path / "run.db")
    assert done.returncode == 0, done.stderr
    series = read_run(tmp_path / "run.db")["x"]
    np.testing.assert_array_equal(series.values, np.arange(len(series)))


TRAINING = """
import sys, time
import numpy as np
from poise.store import RunWriter
writer = RunWriter(sys.argv[1])
clock, layers = writer.group(["clock"]), writer.group([f"s{i}" for i in range(100)])
step = 0
while True:
    clock.append(step, [time.time()])
    layers.append(step, np.full(100, step))
    if step % 50 == 0:
        writer.event(step, "mark", {"at": time.time()})
    step += 1
    time.sleep(0.001)
    if step == 1:
        writer.flush()
        print("running", flush=True)
"""


@pytest.mark.slow
def test_after_kill_9_the_file_holds_everything_up_to_one_second_before(tmp_path: Path):
    chance = random.Random(0)
    for attempt in range(20):
        path = tmp_path / f"run{attempt}.db"
        with subprocess.Popen([sys.executable, "-c", TRAINING, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 2.0))
            process.kill()
            killed = time.time()
        record = read_run(path)
        clock, layer = record["clock"], record["s42"]
        np.testing.assert_array_equal(clock.steps, np.arange(len(clock)))
        np.testing.assert_array_equal(layer.values, np.arange(len(layer)))
        assert abs(len(clock) - len(layer)) <= 1
        assert clock.values[-1] >= killed - 1.0
        assert [event.step for event in record.events("mark")] == list(range(0, len(clock), 50))
