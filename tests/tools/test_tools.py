"""The small helpers: what they promise, each against the plainest check there is."""

import ast
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import poise.tools
from poise.tools.atomic_write import atomic_write, write_text
from poise.tools.child_process import ChildProcesses, end_process
from poise.tools.json_numbers import json_number, json_plain
from poise.tools.listing import listing
from poise.tools.nearest_name import did_you_mean
from poise.tools.number import number
from poise.tools.progress_bar import fraction_bar, progress_bar
from poise.tools.random_states import RandomStates, preserved_random_states, seeded_random_states
from poise.tools.unwrap import unwrap

CPU = torch.device("cpu")


def test_the_room_imports_no_other():
    for file in Path(poise.tools.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("poise"):
                assert node.module.startswith("poise.tools."), f"{file.name} imports {node.module}"


# --- JSON


@given(st.floats())
def test_json_reads_every_number_back(value):
    text = json.dumps(json_number(value), allow_nan=False)
    assert float(json.loads(text)) == pytest.approx(value, rel=0, nan_ok=True)


def test_nested_numbers_become_plain_and_the_rest_stays():
    plain = json_plain({"a": (1.5, math.inf), "b": [{"c": math.nan}], "d": True, "e": "inf", "f": None, "g": 3})
    assert plain == {"a": [1.5, "inf"], "b": [{"c": "nan"}], "d": True, "e": "inf", "f": None, "g": 3}


# --- files


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "numbers.txt"
    write_text(target, "old π")
    write_text(target, "new π")
    assert target.read_bytes() == "new π".encode()
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path):
    target = tmp_path / "numbers.txt"
    write_text(target, "old")

    def interrupted():
        with atomic_write(target) as draft:
            draft.write_text("half")
            assert draft.parent == target.parent
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a.txt", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_reader_never_sees_a_part(tmp_path):
    target, texts = tmp_path / "big.txt", ["a" * 200_000, "b" * 200_000]
    write_text(target, texts[0])
    writers = [threading.Thread(target=lambda t=t: [write_text(target, t) for _ in range(30)]) for t in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert target.read_text() in texts
    assert list(tmp_path.iterdir()) == [target]


# --- words


def test_nearest_names_come_first_else_all_that_are_there():
    known = ["clip_grad_norm", "warmup", "beta2"]
    assert did_you_mean("warmpu", known) == "did you mean warmup?"
    assert did_you_mean("zzz", known) == "there are clip_grad_norm, warmup, beta2"
    many = did_you_mean("zzz", (f"layer{i}" for i in range(500)))
    assert many.endswith("layer39 and 460 more")


def test_a_listing_is_short():
    assert listing(["a", "b"]) == "a, b"
    assert listing(list("abcde")) == "a, b, c and 2 more"
    assert listing([]) == ""


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_a_written_number_is_right_to_its_digits(value, digits):
    text = number(value, digits).replace(",", "").replace("−", "-")
    assert float(text) == pytest.approx(value, rel=0.5001 * 10 ** (1 - digits), abs=1e-320)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (14681.2, 4, "14,681"),
        (14681.2, 3, "14,681"),
        (0.5, 4, "0.5"),
        (1 / 3, 3, "0.333"),
        (-2.0, 4, "−2"),
        (1.5e-9, 3, "1.5e-9"),
        (2e30, 4, "2e30"),
        (12_345, 4, "12,345"),
        (123, 4, "123"),
        (0.0, 4, "0"),
        (math.nan, 4, "NaN"),
        (-math.inf, 4, "−∞"),
    ],
)
def test_numbers_as_a_reader_wants_them(value, digits, text):
    assert number(value, digits) == text


# --- progress


def shown(console):
    return console.file.getvalue()


def terminal():
    return Console(file=StringIO(), force_terminal=True, width=100, color_system=None)


def test_a_count_and_a_fraction_are_shown_as_what_they_are():
    console = terminal()
    with progress_bar(console=console) as bar:
        bar.add_task("runs", total=12, completed=3)
        bar.add_task("one job", total=1.0, completed=0.25)
        bar.add_task("who knows", total=None)
        bar.refresh()
    assert "3/12" in shown(console)
    assert "25 %" in shown(console)


def test_a_bar_is_for_terminals_unless_it_is_asked_for():
    console = Console(file=StringIO(), width=100)
    with fraction_bar("job", console=console) as progress:
        progress(0.5, "half")
    assert shown(console) == ""
    with fraction_bar("job", show=True, console=terminal()) as progress:
        progress(0.5, "half")


def test_the_words_of_a_fraction_are_shown():
    console = terminal()
    with fraction_bar("job", console=console) as progress:
        progress(0.5, "half done")
    assert "job: half done" in shown(console)


# --- modules


def test_wrappers_are_taken_off_in_any_order():
    class DistributedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)  # a name that a user may well take

    plain = Named()
    assert unwrap(plain) is plain
    compiled = torch.compile(plain, backend="eager")
    assert unwrap(compiled) is plain
    assert unwrap(DistributedDataParallel(compiled)) is plain
    assert unwrap(torch.compile(DistributedDataParallel(plain), backend="eager")) is plain
    assert unwrap(nn.DataParallel(plain)) is plain


# --- random numbers


def draws():
    return random.random(), np.random.rand(), torch.rand(2).tolist()  # noqa: NPY002


def test_random_states_are_put_back_even_after_an_error():
    before = RandomStates(CPU)

    def interrupted():
        with preserved_random_states(CPU):
            draws()
            assert RandomStates(CPU) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert RandomStates(CPU) == before


def test_a_seed_gives_the_same_numbers_and_is_forgotten_at_the_end():
    before = RandomStates(CPU)
    taken = []
    for seed in (2**40 + 1, 2**40 + 1, 5):
        with seeded_random_states(CPU, seed):
            taken.append(draws())
    assert taken[0] == taken[1] != taken[2]
    assert RandomStates(CPU) == before


# --- children


def python(code):
    return [sys.executable, "-c", code]


def test_a_child_runs_to_its_end_with_one_thread_and_files_of_its_own(tmp_path):
    with ChildProcesses() as children:
        code = "import os, sys; print(os.environ['OMP_NUM_THREADS']); print('e', file=sys.stderr); sys.exit(3)"
        assert children.run(python(code), tmp_path) == 3
    assert (tmp_path / "stdout.txt").read_text() == "1\n"
    assert (tmp_path / "stderr.txt").read_text() == "e\n"


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_error_ends_children_and_what_they_started(tmp_path):
    code = (
        "import subprocess, sys, time, pathlib;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "pathlib.Path('pid.tmp').write_text(str(p.pid)); pathlib.Path('pid.tmp').rename('pid'); time.sleep(600)"
    )
    (tmp_path / "inner").mkdir()
    command = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), *python(code)]
    ended = []

    def work(children):
        with pytest.raises(InterruptedError):
            children.run(command, tmp_path)
        ended.append(True)

    children = ChildProcesses()
    thread = threading.Thread(target=work, args=(children,))

    def interrupted():
        with children:
            thread.start()
            wait_for((tmp_path / "pid").exists)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    thread.join(20)
    assert ended == [True]
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())))
    with pytest.raises(InterruptedError):
        children.run(python("pass"), tmp_path)


def test_a_child_that_does_not_listen_is_ended_by_force():
    code = "from signal import *; import time; signal(SIGTERM, SIG_IGN); print('on', flush=True); time.sleep(600)"
    child = subprocess.Popen(python(code), stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout.readline() == b"on\n"
    end_process(child, seconds=0.2)
    assert child.returncode == -9
    end_process(child)  # it has ended: nothing happens
    child.stdout.close()


def test_an_error_in_the_middle_ends_that_child(tmp_path):
    with ChildProcesses() as children:
        with (
            pytest.raises(ZeroDivisionError),
            children.child(python("import time; time.sleep(600)"), tmp_path) as child,
        ):
            raise ZeroDivisionError
        assert child.poll() is not None
        assert children.run(python("pass"), tmp_path) == 0  # the others go on
