"""A sweep that is killed and taken up again."""

import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading

import joblib
import pytest

from poise.preflight import DivergedRunError, SweepPoint, sweep
from poise.preflight.sweeps.sweep_folder import SweepFolder, fingerprint

LRS = [0.01, 0.1, 1.0]


class Counting:
    """A train function that knows what it ran; it diverges at lr = 1 and may break at a given learning rate."""

    def __init__(self, breaks_at=None):
        self.ran, self.breaks_at = [], breaks_at

    def __call__(self, lr, seed, size=1):
        if lr == self.breaks_at:
            raise KeyboardInterrupt
        self.ran.append((size, lr, seed))
        return {"loss": math.nan if lr >= 1 else lr + seed, "init_loss": 5.0, "odd": -math.inf}


def test_what_an_interrupt_left_is_taken_over(tmp_path):
    broken = Counting(breaks_at=0.01)
    with pytest.raises(KeyboardInterrupt):
        sweep(broken, LRS, n_jobs=1, folder=tmp_path)
    assert broken.ran == [(1, 1.0, 0), (1, 0.1, 0)]
    again = Counting()
    result = sweep(again, LRS, n_jobs=1, folder=tmp_path)
    assert again.ran == [(1, 0.01, 0)]
    assert str(result) == str(sweep(Counting(), LRS, n_jobs=1))  # NaN and infinity came back as they were
    third = Counting()
    assert str(sweep(third, LRS, n_jobs=1, folder=tmp_path)) == str(result)
    assert not third.ran


def test_a_larger_grid_takes_over_what_fits(tmp_path):
    sweep(Counting(), LRS, seeds=[0, 7], n_jobs=1, folder=tmp_path)
    larger = Counting()
    seen = []
    result = sweep(
        larger, [0.1, 0.3], seeds=[0, 1], n_jobs=1, folder=tmp_path, progress=lambda p, d, n: seen.append((d, n))
    )
    assert sorted(larger.ran) == [(1, 0.1, 1), (1, 0.3, 0), (1, 0.3, 1)]
    assert seen == [(2, 4), (3, 4), (4, 4)]
    assert len(result.points) == 4


def test_a_half_written_last_line_costs_one_point(tmp_path):
    sweep(Counting(), LRS, n_jobs=1, folder=tmp_path)
    points = tmp_path / "points.jsonl"
    whole = points.read_bytes()
    for cut in (1, 5, len(whole.splitlines()[-1])):
        points.write_bytes(whole[:-cut])
        again = Counting()
        assert len(sweep(again, LRS, n_jobs=1, folder=tmp_path).points) == 3
        assert again.ran == [(1, 0.01, 0)]
        assert len(points.read_text().splitlines()) == 3


def test_points_survive_json_bit_for_bit():
    point = SweepPoint(0.1 + 0.2, None, 3, math.inf, 1 / 3, {"a": math.nan, "b": -math.inf, "c": 5e-324}, 7)
    back = SweepPoint.from_dict(json.loads(json.dumps(point.to_dict(), allow_nan=False)))
    assert repr(back) == repr(point)


def test_another_train_function_is_refused(tmp_path):
    def one(lr, seed):
        return {"loss": lr, "init_loss": 1.0}

    def other(lr, seed):
        return {"loss": 2 * lr, "init_loss": 1.0}

    sweep(one, LRS, n_jobs=1, folder=tmp_path)
    with pytest.raises(ValueError, match="another train function"):
        sweep(other, LRS, n_jobs=1, folder=tmp_path)


def test_the_fingerprint_knows_bound_arguments_but_no_line_numbers():
    def train(lr, seed, width):
        return {}

    lines = "def train(lr):\n    # {}\n    return {{'loss': lr, 'init_loss': {{1, 2}}}}\n"
    spaces = [{}, {}]
    exec(lines.format("a comment"), spaces[0])
    exec("\n\n" + lines.format("another"), spaces[1])
    assert fingerprint(spaces[0]["train"]) == fingerprint(spaces[1]["train"])
    prints = {fingerprint(functools.partial(train, width=w)) for w in (1, 2)} | {fingerprint(train)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [("{}", "format None"), ('{"format": 99, "name": "", "train": ""}', "format 99"), ("no json", "no JSON")],
)
def test_another_format_is_refused(tmp_path, header, message):
    (tmp_path / "sweep.json").write_text(header)
    with pytest.raises(ValueError, match=message):
        sweep(Counting(), LRS, n_jobs=1, folder=tmp_path)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.tex'"):
        sweep(Counting(), LRS, n_jobs=1, folder=tmp_path)


def test_a_damaged_line_in_the_middle_is_said(tmp_path):
    sweep(Counting(), LRS, n_jobs=1, folder=tmp_path)
    points = tmp_path / "points.jsonl"
    points.write_text("{}\n" + points.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .* is no point of a sweep"):
        sweep(Counting(), LRS, n_jobs=1, folder=tmp_path)


def test_two_sweeps_on_one_folder_do_not_corrupt_it(tmp_path):
    lrs = [0.001 * k for k in range(1, 41)]
    threads = [threading.Thread(target=lambda: sweep(Counting(), lrs, n_jobs=1, folder=tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "points.jsonl").read_text().splitlines()
    assert len(lines) >= 40
    assert len(SweepFolder.open(tmp_path, fingerprint(Counting())).points()) == 40


def test_a_worker_that_does_not_see_the_folder_leaves_it_to_the_caller(tmp_path):
    point = SweepPoint(0.1, None, 0, 1.0, 2.0)
    here = SweepFolder.open(tmp_path / "here", "")
    SweepFolder(here.path, "of another machine").keep(point)
    SweepFolder(tmp_path / "nowhere", here.name).keep(point)
    assert here.points() == []
    here.keep(point)
    assert here.points() == [point]
    assert not (tmp_path / "nowhere").exists()


def exploding(lr, seed, watch):
    loss = 1.0
    watch(0, loss)
    for step in range(1, 400):
        loss = min(loss * lr, 1e9)
        watch(step, loss)
    return {"loss": loss, "init_loss": 1.0}


def test_a_diverged_run_is_stopped_early_and_counts_as_diverged(tmp_path):
    result = sweep(exploding, [0.5, 0.9, 3.0], n_jobs=1, folder=tmp_path)
    *trained, last = result.points
    assert [p.stopped_at for p in trained] == [None, None]
    assert math.isnan(last.loss)
    assert last.init_loss == 1.0
    assert 50 < last.stopped_at < 120
    assert result.curve().diverged.ravel().tolist() == [False, False, True]
    assert sweep(Counting(), [0.5, 0.9, 3.0], n_jobs=1).points[0].stopped_at is None
    assert repr(sweep(exploding, [0.5, 0.9, 3.0], n_jobs=1, folder=tmp_path)) == repr(result)


def test_a_run_that_reports_no_finite_loss_first_is_an_error():
    def train(lr, seed, watch):
        for step in range(5):
            watch(step, math.nan)

    with pytest.raises(ValueError, match=r"report a finite loss first, as watch\(0, init_loss\)"):
        sweep(train, LRS, n_jobs=1)


def test_an_early_end_is_an_exception_that_a_run_may_catch_to_tidy_up():
    assert issubclass(DivergedRunError, Exception)


def die_once(lr, seed, marker):
    if lr == 0.1 and not os.path.exists(marker):
        with open(marker, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": lr, "init_loss": 1.0}


def die_always(lr, seed):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(tmp_path):
    result = sweep(functools.partial(die_once, marker=str(tmp_path / "died")), LRS, n_jobs=2)
    assert (tmp_path / "died").exists()
    assert [p.loss for p in result.points] == LRS


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_is_an_error_in_the_end():
    with pytest.raises(joblib.externals.loky.process_executor.TerminatedWorkerError):
        sweep(die_always, LRS, n_jobs=2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_points_are_kept_as_they_end_whatever_the_backend_and_a_kill_costs_only_what_ran(tmp_path, backend):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, time
            import joblib
            from poise.preflight import sweep

            def train(lr, seed):
                kept = sys.argv[2] + "/points.jsonl"
                if lr == 1 and seed == 0 and not os.path.exists(sys.argv[2] + "/../killed"):
                    while not os.path.exists(kept) or len(open(kept).readlines()) < 3:
                        time.sleep(0.01)
                    open(sys.argv[2] + "/../killed", "w").close()
                    os.kill(int(os.environ["SWEEP"]), signal.SIGKILL)
                with open(sys.argv[2] + "/../ran", "a") as file:
                    file.write(f"{lr} {seed}\\n")
                return {"loss": lr, "init_loss": 9.0}

            if __name__ == "__main__":
                os.environ["SWEEP"] = str(os.getpid())
                with joblib.parallel_config(sys.argv[1], n_jobs=2):
                    print(len(sweep(train, [1, 2, 3], seeds=2, folder=sys.argv[2]).points))
            """
        )
    )
    command = [sys.executable, str(program), backend, str(tmp_path / "sweep")]
    first = subprocess.Popen(command, start_new_session=True)
    assert first.wait(550) == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)  # workers outlive their parent for a while
    kept = len((tmp_path / "sweep" / "points.jsonl").read_text().splitlines())
    assert kept >= 3
    before = (tmp_path / "ran").read_text().splitlines()
    second = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert second.stdout == "6\n", second.stderr
    after = (tmp_path / "ran").read_text().splitlines()[len(before) :]
    assert len(after) <= 6 - kept
