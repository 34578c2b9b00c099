"""Cost of the run file: appending one step of 200 signals, and reading a million values back.

Run with ``python benchmarks/store.py``; prints the median of five repetitions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from poise.store import RunWriter, read_run

SIGNALS, STEPS, REPEATS = 200, 5_000, 5


def append_microseconds(path: Path) -> float:
    """Write a run and return the cost of one append on the calling thread, flushes included."""
    rows = np.random.default_rng(0).standard_normal((STEPS, SIGNALS))
    with RunWriter(path) as writer:
        group = writer.group([f"grad_norm[{i}]" for i in range(SIGNALS)])
        start = time.perf_counter()
        for step, row in enumerate(rows):
            group.append(step, row)
        cost = time.perf_counter() - start
    if writer.fault:
        raise writer.fault
    return 1e6 * cost / STEPS


def read_seconds(path: Path) -> float:
    """Open the run and read every value of it."""
    start = time.perf_counter()
    record = read_run(path)
    count = sum(len(record[name]) for name in record.names)
    cost = time.perf_counter() - start
    assert count == STEPS * SIGNALS
    return cost


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"run{i}.db" for i in range(REPEATS)]
        appends = [append_microseconds(path) for path in paths]
        reads = [read_seconds(path) for path in paths]
        size = paths[0].stat().st_size / 2**20
    print(f"append of one step of {SIGNALS} signals: {statistics.median(appends):.1f} us (bar 50 us)")
    print(f"read of {STEPS * SIGNALS:,} values: {statistics.median(reads):.3f} s (bar 0.3 s), file {size:.1f} MiB")


if __name__ == "__main__":
    main()
