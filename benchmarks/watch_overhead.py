"""What watching costs: whole processes, watched by poise against plain, in turn.

A script is run by `python script.py` and by `python -m poise run script.py`, one after the other, in pairs whose order
alternates, so that a machine whose speed drifts slows both alike. Of each process the time, the CPU time (of all its
threads) and the largest memory are taken; printed are medians over the pairs, with the smallest and the largest value.
Everything counts: imports, finding the model, the steps, diagnosis, report, the end of the interpreter. Bytecode is
written before the first pair, as it is where a package has been installed. This file imports nothing large, because a
child process starts with the largest memory of its parent.

Seconds of a step beside peers are measured by `watch_peers.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GPT = Path(__file__).resolve().parent.parent / "examples" / "tiny_gpt.py"
WIDTH = 256  # a step takes about 25 ms on one core of the machine where RESULTS.md was made
TINY = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x = torch.randn(256, 8)
y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
for step in range(30):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@dataclass(frozen=True)
class Process:
    """What one process took: seconds, seconds of CPU time, MiB at most; and what the watch says it has added."""

    wall: float
    cpu: float
    memory: float
    said: float = float("nan")


def measured(command: list[str], threads: int, folder: Path) -> Process:
    """Run a command and return what it took.

    Raises:
        RuntimeError: if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"}
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{text}")
    said = re.search(r"watching added .*?\(([\d.]+)%", text)
    share = float(said[1]) / 100 if said else float("nan")
    return Process(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, share)


def pairs(name: str, arguments: list[str], count: int, threads: int) -> None:
    """Run a script plain and watched in turn, and print what watching cost."""
    with tempfile.TemporaryDirectory() as folder:
        plain_command = [sys.executable, *arguments]
        rows = []
        for i in range(count):
            watched_command = [sys.executable, "-m", "poise", "run", "--out", f"run{i}", *arguments]
            order = [plain_command, watched_command]
            taken = [measured(command, threads, Path(folder)) for command in (order if i % 2 else order[::-1])]
            rows.append(taken if i % 2 else taken[::-1])
    plain = statistics.median(p.wall for p, _ in rows)
    print(f"\n{name}: {plain:.1f} s plain, {count} pairs")
    for title, unit, digits, value in (
        ("time, watched / plain", "", 3, lambda p, w: w.wall / p.wall),
        ("CPU time, watched / plain", "", 3, lambda p, w: w.cpu / p.cpu),
        ("time added", " s", 2, lambda p, w: w.wall - p.wall),
        ("CPU time added", " s", 2, lambda p, w: w.cpu - p.cpu),
        ("memory added", " MiB", 0, lambda p, w: w.memory - p.memory),
        ("what the watch says it added", " %", 1, lambda p, w: 100 * w.said),
    ):
        values = [value(p, w) for p, w in rows]
        low, middle, high = min(values), statistics.median(values), max(values)
        print(
            f"  {title:30s} {middle:8.{digits}f}{unit:4s} ({low:.{digits}f} to {high:.{digits}f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5, help="of processes per script")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the GPT; choose one whose step takes 25 ms")
    parser.add_argument("--steps", type=int, nargs="*", default=(300, 2400), help="of the runs of the GPT")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.py"
        tiny.write_text(TINY)
        measured([sys.executable, "-m", "poise", "run", "--out", "warm", str(tiny)], options.threads, Path(folder))
        pairs("an MLP, 30 steps", [str(tiny)], options.pairs, options.threads)
    for steps in options.steps:
        arguments = [str(GPT), "--lr", "0.001", "--width", str(options.width), "--steps", str(steps)]
        pairs(f"a GPT of width {options.width}, {steps} steps", arguments, options.pairs, options.threads)


if __name__ == "__main__":
    main()
