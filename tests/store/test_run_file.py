"""Writing a run file and reading it back."""

from __future__ import annotations

import gc
import math
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from poise.store import Event, RunFileError, RunWriter, StoreError, read_run
from poise.store.schema import FORMAT_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def blocks_in(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM blocks").fetchone()
    connection.close()
    return count


def test_what_is_written_is_read_back_bit_by_bit(path):
    rng = np.random.default_rng(0)
    wide, narrow = rng.standard_normal((700, 300)), rng.standard_normal(2000)
    wide[5, 7], wide[6, 7], wide[7, 7], wide[8, 7] = np.nan, np.inf, -np.inf, -0.0
    with RunWriter(path, meta={"script": "train.py"}) as writer:
        loss = writer.group(["loss"])
        for step in range(1000):
            loss.append(step, [narrow[step]])
        writer.flush()
        layers = writer.group([f"grad_norm[{i}]" for i in range(300)])
        for step in range(700):
            layers.append(3 * step, wide[step])
        for step in range(1000, 2000):
            loss.append(step, [narrow[step]])
    record = read_run(path)
    assert writer.fault is None
    assert record.names == ["loss", *layers.names]
    np.testing.assert_array_equal(record["loss"].values, narrow)
    np.testing.assert_array_equal(record["loss"].steps, np.arange(2000))
    for i, series in enumerate(record.by_layer("grad_norm").values()):
        assert series.values.tobytes() == wide[:, i].tobytes()
        assert series.steps[-1] == 3 * 699
    assert record.last_step == 3 * 699


def test_a_closed_run_is_one_file_that_opens_in_a_read_only_copy(path):
    with RunWriter(path) as writer:
        writer.group(["x"]).append(0, [1.0])
    assert [p.name for p in path.parent.iterdir()] == ["run.db"]
    assert read_run(path)["x"].values.tolist() == [1.0]
    assert [p.name for p in path.parent.iterdir()] == ["run.db"]


def test_rows_out_of_order_and_one_signal_in_two_groups(path):
    with RunWriter(path) as writer:
        often, seldom = writer.group(["a", "x"]), writer.group(["x"])
        for step in (5, 1, 3):
            often.append(step, [0.0, 10.0 + step])
        seldom.append(2, [12.0])
    series = read_run(path)["x"]
    assert series.steps.tolist() == [1, 2, 3, 5]
    assert series.values.tolist() == [11.0, 12.0, 13.0, 15.0]


def test_until_and_last_step_of_a_file_agree_with_memory(path):
    with RunWriter(path) as writer:
        early, late = writer.group(["early"]), writer.group(["late"])
        for step in (4, 0, 2):
            early.append(step, [step])
        late.append(10, [1.0])
        writer.event(11, "end", {})
    record = read_run(path)
    assert record.last_step == 11
    assert record.until(3).last_step == 2
    assert record.until(3).names == ["early"]
    assert record.until(10).names == ["early", "late"]
    assert record.until(10).events() == []


def test_payloads_and_meta_survive_numpy_and_non_finite_numbers(path):
    payload = {
        "f": np.float32(0.5),
        "i": np.int64(2**62),
        "b": np.bool_(True),
        "a": np.arange(3),
        "inf": -math.inf,
        "set": {1},
        "nested": {"t": (1, np.float64(2.5))},
        3: None,
        "path": Path("x"),
        "text": "ü\n\ud800",
    }
    with RunWriter(path, meta={"seeds": np.array([1, 2])}) as writer:
        writer.event(np.int64(4), "odd", payload)
        writer.event(5, "nan", {"value": float("nan")})
        writer.set_meta("lr", np.float32(0.25))
        writer.set_meta("lr", 0.125)
    record = read_run(path)
    assert record.events("odd") == [
        Event(
            4,
            "odd",
            {
                "f": 0.5, "i": 2**62, "b": True, "a": [0, 1, 2], "inf": -math.inf, "set": [1],
                "nested": {"t": [1, 2.5]}, "3": None, "path": "x", "text": "ü\n\ud800",
            },
        )
    ]  # fmt: skip
    assert math.isnan(record.events("nan")[0].payload["value"])
    assert record.meta == {"seeds": [1, 2], "lr": 0.125}


def test_a_reader_follows_a_live_run(path):
    with RunWriter(path) as writer:
        group = writer.group(["x", "y"])
        group.append(0, [0.0, 0.0])
        writer.flush()
        record = read_run(path)
        view = record.until(10**6)
        for step in range(1, 200):
            group.append(step, [step, -step])
            if step % 7 == 0:
                writer.event(step, "mark", {})
                writer.flush()
                if step % 3 == 0:  # some states are seen, some skipped; blocks are joined meanwhile
                    assert len(record["x"]) <= step
                    record.refresh()
                    np.testing.assert_array_equal(record["x"].values, np.arange(step + 1))
                    assert record.last_step == view.last_step == step
        writer.group(["late"]).append(7, [1.0])
    record.refresh()
    np.testing.assert_array_equal(record["y"].values, -np.arange(200.0))
    assert "late" in record
    assert len(record.events("mark")) == 28


def test_a_record_does_not_change_before_refresh_although_numbers_are_read_late(path):
    with RunWriter(path) as writer:
        group = writer.group(["x"])
        group.append(0, [0.0])
        writer.flush()
        record = read_run(path)
        group.append(1, [1.0])
        writer.flush()
        assert record["x"].steps.tolist() == [0]
        assert record.derive(_count) == 1
        assert record.refresh()["x"].steps.tolist() == [0, 1]
        assert record.derive(_count) == 2


def _count(record):
    return len(record["x"])


def test_numbers_reach_the_file_without_flush_or_close(path):
    writer = RunWriter(path)
    writer.group(["x"]).append(0, [1.0])
    deadline = time.monotonic() + 5.0
    while "x" not in read_run(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "x" in read_run(path)
    writer.close()


def test_small_blocks_are_joined_while_the_run_goes_and_at_its_end(path):
    with RunWriter(path) as writer:
        group = writer.group(["x"])
        for step in range(300):
            group.append(step, [step])
            writer.flush()
        assert blocks_in(path) <= math.log2(300) + 1
    assert blocks_in(path) == 1
    np.testing.assert_array_equal(read_run(path)["x"].values, np.arange(300))


def test_a_long_run_reads_fast(path):
    rows = np.random.default_rng(0).standard_normal((5000, 200))
    with RunWriter(path) as writer:
        group = writer.group([f"s{i}" for i in range(200)])
        for step, row in enumerate(rows):
            group.append(step, row)
    start = time.process_time()
    record = read_run(path)
    values = [record[name].values for name in record.names]
    # The bar is 0.3 s; processor time, because the machine of the tests is shared.
    assert time.process_time() - start <= 0.3
    np.testing.assert_array_equal(np.stack(values, axis=1), rows)


def test_append_is_cheap_for_the_calling_thread(path):
    row = np.random.default_rng(0).standard_normal(200)
    with RunWriter(path) as writer:
        group = writer.group([f"s{i}" for i in range(200)])
        start = time.thread_time()
        for step in range(5000):
            group.append(step, row)
        assert time.thread_time() - start <= 5000 * 50e-6


def test_bad_arguments_are_named(path):
    with RunWriter(path) as writer:
        with pytest.raises(TypeError, match="sequence of strings, got 'loss'"):
            writer.group("loss")
        with pytest.raises(ValueError, match="at least one name"):
            writer.group([])
        with pytest.raises(ValueError, match=r"more than once: \['a'\]"):
            writer.group(["a", "b", "a"])
        group = writer.group(["a", "b"])
        with pytest.raises(ValueError, match="2 numbers, one for each name, got 1"):
            group.append(0, [1.0])
        with pytest.raises(TypeError):
            group.append(0.5, [1.0, 2.0])
        group.append(1, [1.0, 2.0])
    assert read_run(path)["a"].steps.tolist() == [1]
    with pytest.raises(TypeError, match="meta must be a mapping, got list"):
        RunWriter(path.with_name("other.db"), meta=["x"])


def test_closing_is_idempotent_and_later_calls_do_nothing(path):
    writer = RunWriter(path)
    group = writer.group(["x"])
    group.append(0, [1.0])
    writer.close()
    writer.close()
    group.append(1, [2.0])
    writer.event(1, "late", {})
    writer.flush()
    assert writer.fault is None
    assert read_run(path).last_step == 0


def test_a_dropped_writer_saves_its_rows_and_ends_its_thread(path):
    def write() -> None:
        RunWriter(path).group(["x"]).append(0, [1.0])

    before = threading.active_count()
    write()
    gc.collect()
    assert threading.active_count() == before
    assert read_run(path)["x"].values.tolist() == [1.0]


def test_an_unclosed_writer_does_not_hold_up_the_end_of_the_interpreter(path):
    code = f"""
from poise.store import RunWriter
writer = RunWriter({str(path)!r})
group = writer.group(["x"])
group.append(0, [1.0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    assert read_run(path)["x"].values.tolist() == [1.0]


def test_many_threads_may_append(path):
    with RunWriter(path) as writer:
        groups = [writer.group([f"x{i}"]) for i in range(4)]

        def work(group) -> None:
            for step in range(500):
                group.append(step, [step])

        threads = [threading.Thread(target=work, args=(group,)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    record = read_run(path)
    assert all(record[f"x{i}"].values.tolist() == list(range(500)) for i in range(4))


def test_a_file_that_exists_is_not_overwritten(path):
    path.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        RunWriter(path)
    assert path.read_text() == "mine"


def test_a_file_that_is_not_there(path):
    with pytest.raises(RunFileError, match="does not exist"):
        read_run(path)


def test_a_folder(tmp_path):
    with pytest.raises(RunFileError, match="is not a file"):
        read_run(tmp_path)


def test_an_empty_file(path):
    path.touch()
    with pytest.raises(RunFileError, match="is empty"):
        read_run(path)


def test_a_text_file(path):
    path.write_text("step,loss\n" * 1000)
    with pytest.raises(RunFileError, match="not a poise run file"):
        read_run(path)


def test_another_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(RunFileError, match="some other SQLite database"):
        read_run(path)


def test_a_newer_format_is_named(path):
    RunWriter(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 6}")
    connection.close()
    with pytest.raises(RunFileError, match=f"has format {FORMAT_VERSION + 6}, written by a newer poise"):
        read_run(path)


def test_a_corrupt_file(path):
    with RunWriter(path) as writer:
        group = writer.group([f"s{i}" for i in range(100)])
        for step in range(1000):
            group.append(step, np.ones(100))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(RunFileError, match="corrupt"):
        [read_run(path)[f"s{i}"] for i in range(100)]


def test_a_block_of_the_wrong_length(path):
    with RunWriter(path) as writer:
        writer.group(["x"]).append(0, [1.0])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET data = x'00'")
    connection.close()
    with pytest.raises(RunFileError, match="corrupt: a block of 1 rows of 1 signals holds 8 and 1 bytes"):
        read_run(path)["x"]
